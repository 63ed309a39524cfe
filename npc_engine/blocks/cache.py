"""The KV tiers: memory in front of disk."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple

import torch

from npc_engine.blocks.block import Block, BlockId
from npc_engine.blocks.kv import BlockKV, KVShape
from npc_engine.blocks.pool import BlockPool
from npc_engine.blocks.store import BlockStore
from npc_engine.errors import BlockMemoryError


class Tier(StrEnum):
    """Where a block's keys and values are."""

    MEMORY = "memory"
    DISK = "disk"
    MISSING = "missing"


class CacheStats(NamedTuple):
    """`num_loaded` counts blocks brought from disk, `num_evicted` blocks dropped from memory, since the start."""

    num_blocks: int
    num_bytes: int
    max_bytes: int
    num_unwritten: int
    num_loaded: int
    num_evicted: int


class BlockCache:
    """Keys and values of blocks, in memory and on disk.

    Reading goes memory → disk → the caller encodes. Writing is write-behind: a block is usable as soon as it is
    :meth:`put`, and reaches the disk with :meth:`flush` (in idle time), or when it is evicted. Nothing here is truth:
    whatever is lost is encoded again. For one thread.
    """

    def __init__(self, shape: KVShape, device: torch.device, *, max_bytes: int, store: BlockStore | None) -> None:
        self.shape = shape
        self._device = device
        self._store = store
        self._pool = BlockPool(max_bytes)
        self._kv: dict[BlockId, BlockKV] = {}
        self._unwritten: dict[BlockId, None] = {}  # in order of arrival
        self._num_loaded = 0
        self._num_evicted = 0

    def tier(self, block: Block) -> Tier:
        """Where the block is, without moving it."""
        if self._pool.lookup(block.id):
            return Tier.MEMORY
        if self._store is not None and block.id in self._store:
            return Tier.DISK
        return Tier.MISSING

    def acquire(self, blocks: Iterable[Block]) -> tuple[Block, ...]:
        """Bring blocks to memory and hold a reference to each, until :meth:`release`.

        Returns those that are neither in memory nor, undamaged, on disk: they have to be encoded, and are not held.
        """
        held: list[Block] = []
        missing: list[Block] = []
        try:
            for block in blocks:
                if self._pool.lookup(block.id) or self._load(block):
                    self._pool.acquire([block.id])
                    held.append(block)
                else:
                    missing.append(block)
        except BlockMemoryError:
            self.release(held)
            raise
        return tuple(missing)

    def release(self, blocks: Iterable[Block]) -> None:
        """Give references back; the block given back last is evicted last."""
        self._pool.release(block.id for block in blocks)

    def put(self, block: Block, kv: BlockKV) -> None:
        """Take over freshly computed keys and values. A block that is here already stays as it is."""
        assert self.shape.matches(kv, block.num_tokens)
        if self._pool.lookup(block.id):
            return
        self._insert(block, kv)
        if self._store is not None:
            self._unwritten[block.id] = None

    def get(self, block_id: BlockId) -> BlockKV:
        """Keys and values of a block that is in memory. Valid while the block is held."""
        return self._kv[block_id]

    def flush(self, max_blocks: int | None = None) -> int:
        """Write up to `max_blocks` unwritten blocks to disk in one transaction. Returns how many are left."""
        batch = list(self._unwritten)[:max_blocks]
        if batch and self._store is not None:
            self._store.put((block_id, self._kv[block_id]) for block_id in batch)
            for block_id in batch:
                del self._unwritten[block_id]
        return len(self._unwritten)

    def close(self) -> None:
        """Write what is not on disk yet, and close the store. Idempotent."""
        if self._store is not None:
            self.flush()
            self._store.close()
            self._store = None

    def stats(self) -> CacheStats:
        return CacheStats(
            len(self._pool),
            self._pool.num_bytes,
            self._pool.max_bytes,
            len(self._unwritten),
            self._num_loaded,
            self._num_evicted,
        )

    def check_integrity(self) -> None:
        """Assert every invariant; for tests."""
        self._pool.check_integrity()
        assert set(self._kv) == set(self._pool)
        assert set(self._unwritten) <= set(self._kv)

    def _load(self, block: Block) -> bool:
        kv = self._store.get(block.id) if self._store is not None else None
        # A value may be intact and yet not be this block: its writer had another shape under the same identity.
        if kv is None or not self.shape.matches(kv, block.num_tokens):
            return False
        self._insert(block, BlockKV(kv.k.to(self._device), kv.v.to(self._device)))
        self._num_loaded += 1
        return True

    def _insert(self, block: Block, kv: BlockKV) -> None:
        evicted = self._pool.allocate(block.id, kv.num_bytes)
        if self._store is not None:
            self._store.put((block_id, self._kv[block_id]) for block_id in evicted if block_id in self._unwritten)
        for block_id in evicted:
            del self._kv[block_id]
            self._unwritten.pop(block_id, None)
        self._num_evicted += len(evicted)
        self._kv[block.id] = kv
        self._pool.commit(block.id)
