"""The engine around the blocks: simulation, ticks, sessions, saves, and the facade that games use."""

from npc_engine.inference import FinishReason
from npc_engine.runtime.engine import (
    BlockView,
    ModelInfo,
    NpcEngine,
    NpcInfo,
    Observer,
    Preparation,
)
from npc_engine.runtime.events import Changes, WorldChange
from npc_engine.runtime.loading import LoadedModel, LoadProgress, Progress, load
from npc_engine.runtime.reply import Action, Reply, ReplyDelta, ReplyStats, ReplyStream
from npc_engine.runtime.saves import SaveInfo, SaveStore

__all__ = [
    "Action",
    "BlockView",
    "Changes",
    "FinishReason",
    "LoadProgress",
    "LoadedModel",
    "ModelInfo",
    "NpcEngine",
    "NpcInfo",
    "Observer",
    "Preparation",
    "Progress",
    "Reply",
    "ReplyDelta",
    "ReplyStats",
    "ReplyStream",
    "SaveInfo",
    "SaveStore",
    "WorldChange",
    "load",
]
