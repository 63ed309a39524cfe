"""Reads the JSON document of a whole game."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import ValidationError

from npc_engine.errors import SaveError
from npc_engine.world import pointer
from npc_engine.world.entities import (
    COLLECTIONS,
    SINGLETONS,
    EntityId,
    Kind,
    entity_id,
    one_line,
    pointer_to,
    split,
    suggest,
)
from npc_engine.world.mistakes import mistakes
from npc_engine.world.models import FORMAT, Character, Lore, Place, Player, Quest, Record, WorldInfo, WorldTime
from npc_engine.world.references import references

RECORDS: Final[dict[Kind, type[Record]]] = {
    Kind.WORLD: WorldInfo,
    Kind.TIME: WorldTime,
    Kind.PLACE: Place,
    Kind.QUEST: Quest,
    Kind.LORE: Lore,
    Kind.CHARACTER: Character,
    Kind.PLAYER: Player,
}


def read_document(document: Mapping[str, Any]) -> dict[EntityId, Record]:
    """All records of a document; :class:`~npc_engine.errors.SaveError` names the first mistake."""
    if (version := document.get("format")) != FORMAT:
        raise SaveError(f"/format: this version of the engine reads format {FORMAT}, not {version!r}")
    roots = {"format", *SINGLETONS, *COLLECTIONS}
    if different := sorted(roots.symmetric_difference(document)):
        remedy = "is missing" if different[0] in roots else f"unknown field; {suggest(different[0], roots)}"
        raise SaveError(f"/{one_line(different[0])}: {remedy}; take a save that was written by this version")
    values = {entity_id(kind): document[root] for root, kind in SINGLETONS.items()}
    for root in COLLECTIONS:
        if not isinstance(document[root], Mapping):
            raise SaveError(f"/{root}: must be a mapping; take a save that was written by this version")
        for key, value in document[root].items():
            try:
                values[pointer.entity_at((root, str(key)))] = value
            except ValueError as error:
                raise SaveError(f"/{root}: {error}") from None
    records: dict[EntityId, Record] = {}
    for entity, value in values.items():
        model = RECORDS[split(entity)[0]]
        try:
            records[entity] = model.model_validate(value)
        except ValidationError as error:
            path, message = mistakes(error, model)[0]
            raise SaveError(f"{pointer_to(entity)}{pointer.join(path)}: {message}") from None
    for entity, record in records.items():
        for path, kind, key in references(record):
            if entity_id(kind, key) not in records:
                raise SaveError(f'{pointer_to(entity)}{pointer.join(path)}: no {kind} "{key}" in this save')
    return records
