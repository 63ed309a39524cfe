"""Who knows what. What an NPC does not know is not in its prompt, so it can't leak."""

from __future__ import annotations

from typing import Protocol

from npc_engine.world.audience import PLACE_PREFIX, Audience
from npc_engine.world.entities import EntityId, split
from npc_engine.world.models import Quest, Stage
from npc_engine.world.state import WorldState


class Fact(Protocol):
    """Lore, a quest, or a stage of one."""

    @property
    def audience(self) -> Audience: ...


def knows(state: WorldState, npc_id: EntityId, fact: Fact) -> bool:
    """Whether an NPC belongs to a fact's audience.

    ``place:<key>`` counts the NPC's home, not where it stands: nobody forgets by walking away.
    """
    if fact.audience == "everyone":
        return True
    home = f"{PLACE_PREFIX}{state.character(npc_id).home}"
    _, key = split(npc_id)
    return key in fact.audience or home in fact.audience


def known_stage(state: WorldState, npc_id: EntityId, quest: Quest) -> Stage | None:
    """The latest stage, up to the current one, that an NPC has heard of. Until new news come, it tells the old."""
    if not knows(state, npc_id, quest):
        return None
    ids = [stage.id for stage in quest.stages]
    reached = quest.stages[: ids.index(quest.stage) + 1]
    return next((stage for stage in reversed(reached) if knows(state, npc_id, stage)), None)
