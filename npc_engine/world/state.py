"""The world of a running game."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final, Self, TypeVar

from npc_engine.errors import UnknownNameError
from npc_engine.world import assignment, pointer, time
from npc_engine.world.changes import collect_changes
from npc_engine.world.document import RECORDS, read_document
from npc_engine.world.entities import COLLECTIONS, SINGLETONS, EntityId, Kind, entity_id, pointer_to, split, suggest
from npc_engine.world.models import (
    FORMAT,
    Character,
    Lore,
    Place,
    Player,
    Quest,
    Record,
    World,
    WorldInfo,
    WorldTime,
)
from npc_engine.world.patch import Operation, PatchStep

R = TypeVar("R", bound=Record)

_KINDS: Final = frozenset(Kind)


class WorldState:
    """The one owner of a running game's state, seen as a JSON document::

        {"format": 1, "world": {...}, "time": {"day": 1, "minute": 990},
         "places": {"basin": {...}}, "quests": {...}, "lore": {...}, "characters": {...}, "players": {...}}

    Records handed out are immutable: one that was read stays as it was when the state changes. Not thread-safe.
    After ``from_json(to_json())`` both states behave identically; the order of names in a mapping means nothing.
    """

    def __init__(self, records: Mapping[EntityId, Record]) -> None:
        """For :meth:`start`, :meth:`from_json` and :meth:`copy`; checks nothing."""
        self._records: dict[Kind, dict[str, Record]] = {kind: {} for kind in Kind}
        self._present: defaultdict[str, set[EntityId]] = defaultdict(set)  # place key -> who is there
        for entity, record in records.items():
            self._set(entity, record)

    @classmethod
    def start(cls, world: World, player_id: str = "player") -> Self:
        """A new game. Its one player is ``player/<player_id>``; games add others by a patch of ``/players/<id>``."""
        clock = WorldTime(day=world.start.day, minute=time.parse_clock(world.start.time))
        records: dict[EntityId, Record] = {
            entity_id(Kind.WORLD): world.info,
            entity_id(Kind.TIME): clock,
            entity_id(Kind.PLAYER, player_id): world.start.player,
        }
        collections: tuple[tuple[Kind, Mapping[str, Record]], ...] = (
            (Kind.PLACE, world.places),
            (Kind.QUEST, world.quests),
            (Kind.LORE, world.lore),
            (Kind.CHARACTER, world.characters),
        )
        for kind, collection in collections:
            records |= {entity_id(kind, key): record for key, record in collection.items()}
        return cls(records)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """The state that :meth:`to_json` wrote; :class:`~npc_engine.errors.SaveError` names the first mistake."""
        return cls(read_document(document))

    def to_json(self) -> dict[str, Any]:
        """The whole document, made afresh, with its names in order: safe to keep, change or write."""
        document: dict[str, Any] = {"format": FORMAT}
        for root, kind in SINGLETONS.items():
            document[root] = self._records[kind][""].model_dump(mode="json")
        for root, kind in COLLECTIONS.items():
            records = self._records[kind]
            document[root] = {key: records[key].model_dump(mode="json") for key in sorted(records)}
        return document

    def digest(self) -> str:
        """SHA-256 in hex of the document as canonical JSON: sorted names, no spaces, UTF-8."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def copy(self) -> WorldState:
        """A branch of this state. The records are shared, for they never change."""
        return WorldState({entity: self._records[split(entity)[0]][split(entity)[1]] for entity in self.entities()})

    def entities(self) -> tuple[EntityId, ...]:
        """Every entity, by kind and key."""
        return tuple(entity_id(kind, key) for kind in Kind for key in sorted(self._records[kind]))

    # Reading

    @property
    def info(self) -> WorldInfo:
        return self._get(WorldInfo, entity_id(Kind.WORLD))

    @property
    def time(self) -> WorldTime:
        return self._get(WorldTime, entity_id(Kind.TIME))

    def place(self, place_id: EntityId) -> Place:
        return self._get(Place, place_id)

    def quest(self, quest_id: EntityId) -> Quest:
        return self._get(Quest, quest_id)

    def lore(self, lore_id: EntityId) -> Lore:
        return self._get(Lore, lore_id)

    def character(self, npc_id: EntityId) -> Character:
        return self._get(Character, npc_id)

    def player(self, player_id: EntityId) -> Player:
        return self._get(Player, player_id)

    def places(self) -> tuple[EntityId, ...]:
        return self._ids(Kind.PLACE)

    def quests(self) -> tuple[EntityId, ...]:
        return self._ids(Kind.QUEST)

    def lores(self) -> tuple[EntityId, ...]:
        return self._ids(Kind.LORE)

    def npcs(self) -> tuple[EntityId, ...]:
        return self._ids(Kind.CHARACTER)

    def players(self) -> tuple[EntityId, ...]:
        return self._ids(Kind.PLAYER)

    def present_at(self, place_id: EntityId) -> tuple[EntityId, ...]:
        """Characters, then players, who are at a place now."""
        self.place(place_id)
        return tuple(sorted(self._present.get(split(place_id)[1], ())))

    def npcs_at(self, place_id: EntityId) -> tuple[EntityId, ...]:
        """Characters who are at a place now."""
        return tuple(each for each in self.present_at(place_id) if split(each)[0] is Kind.CHARACTER)

    def find_npc(self, name: str) -> EntityId:
        """The NPC with that id, key, name or first name, in any case; else UnknownNameError lists those there are."""
        wanted = name.strip().casefold()
        npcs = {npc_id: self.character(npc_id).name for npc_id in self.npcs()}
        for npc_id in npcs:
            if wanted in (npc_id.casefold(), split(npc_id)[1].casefold()):
                return npc_id
        for full in (True, False):
            found = [
                npc_id
                for npc_id, npc_name in npcs.items()
                if (npc_name if full else npc_name.split()[0]).casefold() == wanted
            ]
            if len(found) == 1:
                return found[0]
            if found:
                candidates = ", ".join(split(npc_id)[1] for npc_id in found)
                raise UnknownNameError(f'several NPCs are called "{name}"; name one by id: {candidates}')
        raise UnknownNameError(f'no NPC "{name}"; there are: {", ".join(npcs.values()) or "none"}')

    # Changing

    def apply(self, operations: Iterable[Operation]) -> frozenset[EntityId]:
        """Apply an RFC 6902 patch and return the entities that are different now (added and removed ones, too).

        All or nothing: after a :class:`~npc_engine.errors.PatchError`, which names operation, path and remedy, the
        state is as it was. Each operation must lead into one entity (two for move and copy): replacing the whole
        document, or a collection, is refused. The cost depends on the entities named, not on how many there are;
        only a removal looks at all of them, for nobody may name what is gone.
        """
        steps = [PatchStep.parse(index, operation) for index, operation in enumerate(operations)]
        named = sorted({entity for step in steps for entity in step.entities})
        document = self._excerpt(named)
        for step in steps:
            step.apply(document, self._siblings())
        changes = collect_changes(self._records, named, document, steps)
        for entity, record in changes.items():
            self._set(entity, record)
        return frozenset(changes)

    def parse_assignment(self, text: str) -> dict[str, Any]:
        """The operation that a person means by ``pointer=value``; changes nothing.

        ``places/basin/conditions/lamp=The lamp is green.`` replaces or adds, an empty value removes a condition,
        exit or relation, and ``characters/wick/memories/-=I saw a lantern.`` adds a memory.
        :class:`~npc_engine.errors.PatchError` lists the valid names at the level where the path breaks.
        """
        return assignment.parse_assignment(self._excerpt, self._siblings(), text)

    def advance(self, minutes: int) -> frozenset[EntityId]:
        """Let time pass; returns the changed entities, as :meth:`apply` does. ValueError for negative minutes."""
        self._set(entity_id(Kind.TIME), time.advance(self.time, minutes))
        return frozenset({entity_id(Kind.TIME)} if minutes else ())

    # Inside

    def _get(self, model: type[R], entity: EntityId) -> R:
        kind, key = split(entity) if entity.partition("/")[0] in _KINDS else (None, "")
        record = self._records[kind].get(key) if kind else None
        if isinstance(record, model):
            return record
        wanted = next(kind for kind, each in RECORDS.items() if each is model)
        raise UnknownNameError(f'no {wanted} "{entity}"; {suggest(entity, self._ids(wanted))}')

    def _ids(self, kind: Kind) -> tuple[EntityId, ...]:
        return tuple(entity_id(kind, key) for key in sorted(self._records[kind]))

    def _siblings(self) -> dict[str, Collection[str]]:
        return {root: self._records[kind].keys() for root, kind in COLLECTIONS.items()}

    def _excerpt(self, entities: Iterable[EntityId]) -> dict[str, Any]:
        """The document with nothing in it but these entities, as far as they exist."""
        document: dict[str, Any] = {root: {} for root in COLLECTIONS}
        for entity in entities:
            kind, key = split(entity)
            if record := self._records[kind].get(key):
                root, *keys = pointer.parse(pointer_to(entity))
                value = record.model_dump(mode="json")
                if keys:
                    document[root][key] = value
                else:
                    document[root] = value
        return document

    def _set(self, entity: EntityId, record: Record | None) -> None:
        kind, key = split(entity)
        old = self._records[kind].get(key)
        if isinstance(old, Character | Player):
            self._present[old.place].discard(entity)
        if record is None:
            self._records[kind].pop(key, None)
        else:
            self._records[kind][key] = record
        if isinstance(record, Character | Player):
            self._present[record.place].add(entity)
