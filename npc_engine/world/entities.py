"""Names of everything that has state and owns blocks."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import StrEnum
from typing import Final, NewType

EntityId = NewType("EntityId", str)
"""``world``, ``time``, ``place/basin``, ``character/odile``, ``quest/water``, ``lore/stair`` or ``player/<key>``."""

KEY_PATTERN: Final = r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}"
"""A key is the last part of an entity id, and the name under which a document keeps that entity."""


class Kind(StrEnum):
    """What an entity is; the first part of its id."""

    WORLD = "world"
    TIME = "time"
    PLACE = "place"
    QUEST = "quest"
    LORE = "lore"
    CHARACTER = "character"
    PLAYER = "player"


COLLECTIONS: Final = {
    "places": Kind.PLACE,
    "quests": Kind.QUEST,
    "lore": Kind.LORE,
    "characters": Kind.CHARACTER,
    "players": Kind.PLAYER,
}
"""First part of a JSON pointer -> kind, for the kinds of which a document holds many."""

SINGLETONS: Final = {"world": Kind.WORLD, "time": Kind.TIME}
"""First part of a JSON pointer -> kind, for the kinds of which a document holds one."""

POINTERS: Final = {kind: name for name, kind in (SINGLETONS | COLLECTIONS).items()}
"""Kind -> first part of its JSON pointers."""


def entity_id(kind: Kind, key: str = "") -> EntityId:
    """The id of the entity `key` of a kind; `key` is empty for the world and the time."""
    return EntityId(f"{kind}/{key}" if key else str(kind))


def split(entity: EntityId) -> tuple[Kind, str]:
    """Kind and key of an entity; the inverse of :func:`entity_id`."""
    kind, _, key = entity.partition("/")
    return Kind(kind), key


def pointer_to(entity: EntityId) -> str:
    """Where a document keeps an entity: ``character/odile`` -> ``/characters/odile``."""
    kind, key = split(entity)
    return f"/{POINTERS[kind]}/{key}" if key else f"/{POINTERS[kind]}"


def suggest(name: str, existing: Iterable[str]) -> str:
    """The end of an error about an unknown `name`: the closest existing one, or those that exist."""
    names = sorted(existing)
    if close := difflib.get_close_matches(name, names, n=1, cutoff=0.6):
        return f'did you mean "{close[0]}"?'
    if not names:
        return "there are none"
    shown = ", ".join(names[:12])
    return f"there are: {shown}" + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def one_line(text: str) -> str:
    """A text for an error message: what can't be printed, line ends among it, is written as an escape."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
