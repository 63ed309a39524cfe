"""The KV tiers: memory in front of disk."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple

import torch

from npc_engine.blocks.block import Block, BlockId
from npc_engine.blocks.kv import BlockKV, KVMemory, KVShape, SeparateKV
from npc_engine.blocks.pool import BlockPool
from npc_engine.blocks.store import BlockStore
from npc_engine.blocks.writer import StoreWriter
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
    :meth:`put`, and a thread of the writer's own brings it to disk. Nothing here is truth: whatever is lost is encoded
    again. For one thread, :meth:`flush` aside.
    """

    def __init__(
        self,
        shape: KVShape,
        device: torch.device,
        *,
        max_bytes: int,
        store: BlockStore | None,
        memory: KVMemory | None = None,
    ) -> None:
        """`memory` has room for blocks of `max_bytes`; None gives every block tensors of its own."""
        self.shape = shape
        self.memory: KVMemory = memory or SeparateKV(shape)
        self._device = device
        self._store = store
        self._pool = BlockPool(max_bytes)
        self._writer = StoreWriter(store) if store is not None else None
        self._pinned: set[BlockId] = set()
        self._num_loaded = 0
        self._num_evicted = 0

    def tier(self, block: Block) -> Tier:
        """Where the block is, without moving it."""
        if self._pool.lookup(block.id):
            return Tier.MEMORY
        if self._store is None or self._writer is None:
            return Tier.MISSING
        return Tier.DISK if self._writer.get(block.id) is not None or block.id in self._store else Tier.MISSING

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
        if self._writer is not None:
            self._writer.put(block.id, kv)

    def pin(self, block: Block) -> None:
        """Never evict this block once it is in memory: the header, which every prompt and every encoding needs."""
        self._pinned.add(block.id)
        if self._pool.lookup(block.id):
            self._pool.pin(block.id)

    def get(self, block_id: BlockId) -> BlockKV:
        """Keys and values of a block that is in memory. Valid while the block is held."""
        return self.memory.get(block_id)

    def flush(self) -> None:
        """Wait until every block is on disk; may be called from another thread.

        Raises :class:`~npc_engine.errors.BlockStoreError` if one could not be written.
        """
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Write what is not on disk yet, and close the store. Idempotent."""
        if self._writer is not None:
            self._writer.close()
        if self._store is not None:
            self._store.close()
        self._store = self._writer = None

    def stats(self) -> CacheStats:
        return CacheStats(
            len(self._pool),
            self._pool.num_bytes,
            self._pool.max_bytes,
            self._writer.num_pending if self._writer is not None else 0,
            self._num_loaded,
            self._num_evicted,
        )

    def check_integrity(self) -> None:
        """Assert every invariant; for tests."""
        self._pool.check_integrity()

    def _load(self, block: Block) -> bool:
        if self._store is None or self._writer is None:
            return False
        kv = self._writer.get(block.id) or self._store.get(block.id)
        if kv is None:
            return False
        if not self.shape.matches(kv, block.num_tokens):
            # Intact, and yet not this block: its writer had another shape under the same identity.
            self._store.refuse(block.id, f"{kv.num_tokens} tokens of another shape")
            return False
        self._insert(block, BlockKV(kv.k.to(self._device), kv.v.to(self._device)))
        self._num_loaded += 1
        return True

    def _insert(self, block: Block, kv: BlockKV) -> None:
        evicted = self._pool.allocate(block.id, self.memory.num_bytes_for(block.num_tokens))
        for block_id in evicted:
            self.memory.remove(block_id)
        self._num_evicted += len(evicted)
        try:
            self.memory.insert(block.id, kv)
        except BlockMemoryError:  # pages can run out before bytes do
            self._pool.free(block.id)
            raise
        self._pool.commit(block.id)
        if block.id in self._pinned:
            self._pool.pin(block.id)
