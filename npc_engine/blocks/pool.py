"""Which blocks are in memory, who uses them, and which go first. Knows no tensors."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from npc_engine.blocks.block import BlockId
from npc_engine.errors import BlockMemoryError


@dataclass(slots=True)
class _Entry:
    num_bytes: int
    is_committed: bool = False
    ref_count: int = 0
    is_pinned: bool = False

    @property
    def is_evictable(self) -> bool:
        return self.is_committed and self.ref_count == 0 and not self.is_pinned


class BlockPool:
    """The bookkeeping of one memory tier.

    A block is *allocated* (its bytes are reserved), then *committed* (its keys and values are there), then used:
    whoever uses it holds a reference, so that it can't be evicted meanwhile. Unreferenced, unpinned blocks wait in
    least-recently-used order until their bytes are needed.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._entries: dict[BlockId, _Entry] = {}
        self._evictable: OrderedDict[BlockId, None] = OrderedDict()  # least recently used first

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[BlockId]:
        return iter(self._entries)

    def lookup(self, block_id: BlockId) -> bool:
        """True if the block is committed. Does not count as a use."""
        entry = self._entries.get(block_id)
        return entry is not None and entry.is_committed

    def allocate(self, block_id: BlockId, num_bytes: int) -> tuple[BlockId, ...]:
        """Reserve `num_bytes` for a block that is not here yet; returns the ids evicted for it, oldest first.

        Raises :class:`BlockMemoryError`, and evicts nothing, when the blocks in use leave too little room.
        """
        assert block_id not in self._entries, "allocated twice"
        victims = self._victims(self.num_bytes + num_bytes - self.max_bytes)
        for victim in victims:
            self._remove(victim)
        self._entries[block_id] = _Entry(num_bytes)
        self.num_bytes += num_bytes
        return victims

    def commit(self, block_id: BlockId) -> None:
        """The block's keys and values are there: it can be looked up, and evicted when nobody uses it."""
        entry = self._entries[block_id]
        assert not entry.is_committed, "committed twice"
        entry.is_committed = True
        self._settle(block_id, entry)

    def acquire(self, block_ids: Iterable[BlockId]) -> None:
        """Hold a reference to each of these committed blocks."""
        for block_id in block_ids:
            entry = self._entries[block_id]
            assert entry.is_committed, "acquired before it was committed"
            entry.ref_count += 1
            self._settle(block_id, entry)

    def release(self, block_ids: Iterable[BlockId]) -> None:
        """Give references back; the last block given back is the most recently used."""
        for block_id in block_ids:
            entry = self._entries[block_id]
            assert entry.ref_count > 0, "released more often than acquired"
            entry.ref_count -= 1
            self._settle(block_id, entry)

    def pin(self, block_id: BlockId) -> None:
        """Keep a block whoever uses it, the header for instance."""
        entry = self._entries[block_id]
        entry.is_pinned = True
        self._settle(block_id, entry)

    def unpin(self, block_id: BlockId) -> None:
        entry = self._entries[block_id]
        entry.is_pinned = False
        self._settle(block_id, entry)

    def free(self, block_id: BlockId) -> None:
        """Forget a block that nobody uses, an allocation that was not committed included."""
        assert self._entries[block_id].ref_count == 0, "freed while in use"
        self._remove(block_id)

    def ref_count(self, block_id: BlockId) -> int:
        return self._entries[block_id].ref_count

    def check_integrity(self) -> None:
        """Assert every invariant; for tests."""
        assert self.num_bytes == sum(entry.num_bytes for entry in self._entries.values()) <= self.max_bytes
        assert set(self._evictable) == {key for key, entry in self._entries.items() if entry.is_evictable}

    def _victims(self, num_bytes_needed: int) -> tuple[BlockId, ...]:
        victims = []
        for block_id in self._evictable:
            if num_bytes_needed <= 0:
                break
            victims.append(block_id)
            num_bytes_needed -= self._entries[block_id].num_bytes
        if num_bytes_needed > 0:
            raise BlockMemoryError(
                f"max_block_memory: the blocks in use leave no room within {self.max_bytes / 2**20:.0f} MiB "
                f"({num_bytes_needed / 2**20:.1f} MiB short); raise it, or talk to fewer NPCs at once"
            )
        return tuple(victims)

    def _remove(self, block_id: BlockId) -> None:
        self.num_bytes -= self._entries.pop(block_id).num_bytes
        self._evictable.pop(block_id, None)

    def _settle(self, block_id: BlockId, entry: _Entry) -> None:
        self._evictable.pop(block_id, None)
        if entry.is_evictable:
            self._evictable[block_id] = None
