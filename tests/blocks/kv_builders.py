"""Blocks with made-up keys and values, for tests that need no model."""

from __future__ import annotations

import torch

from npc_engine.blocks import Block, BlockId, BlockKV, KVShape, ModelIdentity

IDENTITY = ModelIdentity(fingerprint="f" * 64, adapter=None, dtype="float32", rope="theta=10000")
SHAPE = KVShape(num_layers=2, num_kv_heads=2, head_dim=4, dtype=torch.float32)


def make_block(seed: int, num_tokens: int = 4, identity: ModelIdentity = IDENTITY) -> Block:
    """A block without parents whose id depends on `seed`."""
    return Block.behind(identity, (), [seed] * num_tokens)


def make_kv(block: Block, shape: KVShape = SHAPE) -> BlockKV:
    """Keys and values that depend on the block's id alone."""
    generator = torch.Generator().manual_seed(int.from_bytes(block.id[:6], "little"))
    size = (shape.num_layers, shape.num_kv_heads, block.num_tokens, shape.head_dim)
    k, v = (torch.randn(size, generator=generator).to(shape.dtype) for _ in range(2))
    return BlockKV(k, v)


def equal(one: BlockKV | None, other: BlockKV) -> bool:
    """True if both are the same bit for bit, dtype included."""
    return (
        one is not None
        and one.k.dtype == other.k.dtype
        and one.k.shape == other.k.shape
        and torch.equal(one.k.view(torch.uint8), other.k.view(torch.uint8))
        and torch.equal(one.v.view(torch.uint8), other.v.view(torch.uint8))
    )


def bid(number: int) -> BlockId:
    """A made-up block id for bookkeeping."""
    return BlockId(number.to_bytes(32, "little"))
