"""What a patch changes, checked before the state takes it over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from npc_engine.errors import PatchError
from npc_engine.world import pointer
from npc_engine.world.document import RECORDS
from npc_engine.world.entities import EntityId, Kind, entity_id, pointer_to, split, suggest
from npc_engine.world.mistakes import mistakes
from npc_engine.world.models import Record
from npc_engine.world.patch import PatchStep
from npc_engine.world.references import references

Tables = Mapping[Kind, Mapping[str, Record]]
"""All records by kind and key."""


def collect_changes(
    tables: Tables, named: Iterable[EntityId], document: Mapping[str, Any], steps: list[PatchStep]
) -> dict[EntityId, Record | None]:
    """What differs between `tables` and the patched `document` of the entities `named`; None for what was removed.

    :class:`~npc_engine.errors.PatchError` names the one of the `steps` that made something invalid.
    """
    changes = _validate(tables, named, document, steps)
    _check_references(tables, changes, steps)
    return changes


def _validate(
    tables: Tables, named: Iterable[EntityId], document: Mapping[str, Any], steps: list[PatchStep]
) -> dict[EntityId, Record | None]:
    """What differs from the state: the new record, or None for what was removed."""
    changes: dict[EntityId, Record | None] = {}
    for entity in named:
        kind, key = split(entity)
        root, *keys = pointer.parse(pointer_to(entity))
        holder = document[root] if keys else document
        old = tables[kind].get(key)
        if (keys or [root])[0] not in holder:
            if not keys:
                raise PatchError(f"{_culprit(steps, (root,))}: /{root} can't be removed; replace its fields")
            if old is not None:
                changes[entity] = None
            continue
        model = RECORDS[kind]
        try:
            new = model.model_validate(holder[(keys or [root])[0]])
        except ValidationError as error:
            path, message = mistakes(error, model)[0]
            where = (root, *keys, *map(str, path))
            raise PatchError(f"{_culprit(steps, where)}: {pointer.join(where)}: {message}") from None
        if new != old:
            changes[entity] = new
    return changes


def _check_references(tables: Tables, changes: Mapping[EntityId, Record | None], steps: list[PatchStep]) -> None:
    holders: dict[EntityId, Record | None] = {}
    if None in changes.values():  # something is removed: anybody may name it
        holders |= {entity_id(kind, key): record for kind, table in tables.items() for key, record in table.items()}
    holders |= changes
    for holder, record in holders.items():
        for path, kind, key in references(record) if record else ():
            target = entity_id(kind, key)
            if changes.get(target) or (key in tables[kind] and target not in changes):
                continue
            where = (*pointer.parse(pointer_to(holder)), *map(str, path))
            if target in changes:
                gone = pointer.parse(pointer_to(target))
                raise PatchError(
                    f"{_culprit(steps, gone)}: {pointer.join(gone)} can't be removed while {pointer.join(where)} "
                    "names it; change that in the same patch"
                )
            raise PatchError(
                f'{_culprit(steps, where)}: {pointer.join(where)}: no {kind} "{key}"; {suggest(key, tables[kind])}'
            )


def _culprit(steps: list[PatchStep], path: tuple[str, ...]) -> PatchStep:
    """The operation that a mistake at `path` most likely comes from: the closest, and of those the last."""
    return max(steps, key=lambda step: (step.overlap(path), step.index))
