"""Blocks: pieces of prompt whose keys and values are computed once and placed at any position.

Knows tokens, not entities; nothing here knows what a game is.
"""

from npc_engine.blocks.block import Block, BlockId, ModelIdentity
from npc_engine.blocks.cache import BlockCache, CacheStats, Tier
from npc_engine.blocks.kv import BlockKV, KVShape
from npc_engine.blocks.layout import Layout, Placement
from npc_engine.blocks.pool import BlockPool
from npc_engine.blocks.store import BlockDamage, BlockStore, StoreStats

__all__ = [
    "Block",
    "BlockCache",
    "BlockDamage",
    "BlockId",
    "BlockKV",
    "BlockPool",
    "BlockStore",
    "CacheStats",
    "KVShape",
    "Layout",
    "ModelIdentity",
    "Placement",
    "StoreStats",
    "Tier",
]
