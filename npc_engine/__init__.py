"""NPC dialogue over cached, position-free blocks (Block-Attention, arXiv 2409.15355)::

import asyncio
from npc_engine import NpcEngine

async def main() -> None:
    async with await NpcEngine.open("worlds/ninestep") as engine:
        async for delta in engine.say("wick", "What did you see last night?"):
            print(delta.text, end="", flush=True)

asyncio.run(main())
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from npc_engine.config import EngineConfig, SamplingParams
    from npc_engine.errors import NpcEngineError, UserError
    from npc_engine.runtime import NpcEngine, Reply, ReplyDelta, ReplyStats, ReplyStream, WorldChange

__version__ = "0.1.0"

__all__ = [
    "EngineConfig",
    "NpcEngine",
    "NpcEngineError",
    "Reply",
    "ReplyDelta",
    "ReplyStats",
    "ReplyStream",
    "SamplingParams",
    "UserError",
    "WorldChange",
    "__version__",
]

_HOMES = {
    **dict.fromkeys(("EngineConfig", "SamplingParams"), "npc_engine.config"),
    **dict.fromkeys(("NpcEngineError", "UserError"), "npc_engine.errors"),
}


def __getattr__(name: str) -> Any:
    # Lazy (PEP 562): the command line answers --help without importing torch.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES.get(name, "npc_engine.runtime")), name)


def __dir__() -> list[str]:
    return sorted(__all__)
