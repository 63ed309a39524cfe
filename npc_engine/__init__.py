"""NPC dialogue over cached, position-free blocks (Block-Attention, arXiv 2409.15355)::

import asyncio
from npc_engine import NpcEngine

async def main() -> None:
    async with await NpcEngine.open("worlds/ninestep") as engine:
        async for delta in engine.say("wick", "What did you see last night?"):
            print(delta.text, end="", flush=True)

asyncio.run(main())
"""

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
