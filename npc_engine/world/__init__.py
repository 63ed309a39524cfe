"""The world: entities, their state, what each NPC knows, and how worlds are read. No torch, no asyncio.

::

    world = load_world("worlds/ninestep")
    state = WorldState.start(world)
    changed = state.apply([{"op": "replace", "path": "/quests/water/stage", "value": "watch"}])
"""

from npc_engine.world.audience import Audience
from npc_engine.world.entities import EntityId, Kind, entity_id, split
from npc_engine.world.knowledge import Fact, known_stage, knows
from npc_engine.world.loader import Problem, check_world, list_worlds, load_world
from npc_engine.world.models import (
    Character,
    Lore,
    Memory,
    Place,
    Player,
    Quest,
    Record,
    Sheet,
    Stage,
    Start,
    World,
    WorldInfo,
    WorldTime,
)
from npc_engine.world.patch import Operation
from npc_engine.world.state import WorldState
from npc_engine.world.time import clock, part_of_day, phrase

__all__ = [
    "Audience",
    "Character",
    "EntityId",
    "Fact",
    "Kind",
    "Lore",
    "Memory",
    "Operation",
    "Place",
    "Player",
    "Problem",
    "Quest",
    "Record",
    "Sheet",
    "Stage",
    "Start",
    "World",
    "WorldInfo",
    "WorldState",
    "WorldTime",
    "check_world",
    "clock",
    "entity_id",
    "known_stage",
    "knows",
    "list_worlds",
    "load_world",
    "part_of_day",
    "phrase",
    "split",
]
