"""The engine around the blocks: simulation, ticks, sessions, saves, and the facade that games use."""

from npc_engine.inference import FinishReason
from npc_engine.runtime.engine import NpcEngine
from npc_engine.runtime.events import Changes, WorldChange
from npc_engine.runtime.loading import LoadedModel, LoadProgress, Progress, load
from npc_engine.runtime.observer import Observer
from npc_engine.runtime.reply import Action, Reply, ReplyDelta, ReplyStats, ReplyStream
from npc_engine.runtime.saves import SaveInfo, SaveStore
from npc_engine.runtime.views import BlockView, ModelInfo, NpcInfo, Preparation

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
