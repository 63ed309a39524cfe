"""Which other entities a record names. The loader and the state both check them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from npc_engine.world.audience import PLACE_PREFIX, Audience
from npc_engine.world.entities import Kind
from npc_engine.world.models import Character, Lore, Place, Player, Quest, Record

Path = tuple[str | int, ...]
"""Where a value stands inside a record: field names, mapping keys and list indices."""


class Reference(NamedTuple):
    """At `path`, a record names the entity `key` of `kind`."""

    path: Path
    kind: Kind
    key: str


def references(record: Record) -> Iterator[Reference]:
    """All entities that `record` names, in the order of its fields. Players come and go and are not checked."""
    match record:
        case Place():
            for key in record.exits:
                yield Reference(("exits", key), Kind.PLACE, key)
        case Quest():
            for i, stage in enumerate(record.stages):
                yield from _members(("stages", i, "audience"), stage.audience)
            yield from _members(("audience",), record.audience)
        case Lore():
            yield from _members(("audience",), record.audience)
        case Player():
            yield Reference(("place",), Kind.PLACE, record.place)
        case Character():
            yield Reference(("place",), Kind.PLACE, record.place)
            yield Reference(("home",), Kind.PLACE, record.home)
            for key in record.sheet.relations:
                yield Reference(("sheet", "relations", key), Kind.CHARACTER, key)
            for i, memory in enumerate(record.memories):
                for j, key in enumerate(memory.people):
                    if "/" not in key:
                        yield Reference(("memories", i, "people", j), Kind.CHARACTER, key)
                if memory.place is not None:
                    yield Reference(("memories", i, "place"), Kind.PLACE, memory.place)


def _members(path: Path, audience: Audience) -> Iterator[Reference]:
    if audience == "everyone":
        return
    for i, member in enumerate(audience):
        if member.startswith(PLACE_PREFIX):
            yield Reference((*path, i), Kind.PLACE, member.removeprefix(PLACE_PREFIX))
        else:
            yield Reference((*path, i), Kind.CHARACTER, member)
