"""A conversation's context in pages: a table of where its blocks are cached, and pages of its own behind them."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
from torch import Tensor

from npc_engine.blocks import Block, BlockCache, BlockId, BlockKV, Layout, Placement
from npc_engine.blocks.pages import PagedKV
from npc_engine.blocks.positions import shift
from npc_engine.inference.paged_attention import ENTRY, Ints, SequencePages


class _Sealed(NamedTuple):
    """A turn that was computed here. Its keys are where they were rotated for: `delta` from the block's own start."""

    pages: tuple[int, ...]
    delta: int


class PagedContext:
    """What is cached stays where it is and is held; what is computed goes into the conversation's own pages.

    ::

        header, blocks      pages of the cache, shared by every layout that has them; never copied
        turns spoken here   own pages, sealed
        new tokens …        own pages, open

    A turn is in the cache, too, for later; as long as the conversation lasts, its own pages serve.
    """

    def __init__(self, cache: BlockCache, memory: PagedKV, inv_freq: Tensor) -> None:
        self._cache = cache
        self._memory = memory
        self._inv_freq = inv_freq
        self._held: dict[BlockId, Block] = {}
        self._sealed: dict[BlockId, _Sealed] = {}
        self._cached = self._table(())
        self._set((), [], 0)
        self._own: tuple[int, ...] = ()
        self._num_new = 0

    @property
    def position(self) -> int:
        return self._layout_end + self._num_new

    @property
    def num_bytes(self) -> int:
        own = sum(len(sealed.pages) for sealed in self._sealed.values()) + len(self._own)
        return self._memory.shape.num_bytes(own * self._memory.page_tokens)

    @property
    def holds_blocks(self) -> bool:
        return bool(self._held)

    def stale(self, layout: Layout) -> list[Placement]:
        """The placements whose blocks are neither held nor its own."""
        return [p for p in layout.placements if p.block.id not in self._held and p.block.id not in self._sealed]

    def place(self, layout: Layout, kv_of: Callable[[BlockId], BlockKV], room: int = 0) -> int:
        """Refer to exactly the blocks of `layout`, and own pages for `room` tokens. `kv_of` is not needed.

        Returns the tokens that were not referred to before: none is copied. Raises
        :class:`~npc_engine.errors.BlockMemoryError` if there are too few free pages.
        """
        stale = self.stale(layout)
        # Mostly the end of a layout changes. What is in front of that stays as it is.
        same = sum(
            1 for _ in itertools.takewhile(operator.truth, map(operator.eq, self._placements, layout.placements))
        )
        old, new = self._placements[same:], layout.placements[same:]
        fresh = {placement.block.id: placement.block for placement in stale}
        missing = self._cache.acquire(fresh.values())
        assert not missing, "what is stale has to be cached"
        self._held |= fresh
        wanted = {placement.block.id for placement in layout.placements}
        self._forget(dict.fromkeys(p.block.id for p in old if p.block.id not in wanted))
        ends = self._ends[:same]
        entries = [self._entry(placement) for placement in new]
        self._cached = np.concatenate((self._cached[: ends[-1] if ends else 0], self._table(entries)))
        self._set(layout.placements, [*ends, *_ends_of(entries, ends[-1] if ends else 0)], layout.end)
        self._give_back_own()
        self._own = self._memory.pool.allocate(self._memory.num_pages_for(room))
        return sum(placement.block.num_tokens for placement in stale)

    def seal(self, block: Block) -> BlockKV:
        num_tokens = block.num_tokens
        assert num_tokens <= self._num_new
        delta = self._layout_end - block.start
        num_pages = self._memory.num_pages_for(num_tokens)
        pages, rest = self._own[:num_pages], self._own[num_pages:]
        self._memory.pool.free(rest)
        self._own, self._num_new = (), 0
        self._sealed[block.id] = _Sealed(pages, delta)
        self._cached = np.concatenate((self._cached, self._table([_Entry(pages, 0, num_tokens)])))
        row = self._placements[-1].rows.stop if self._placements else 0
        placed = Placement(block, self._layout_end, row)
        self._set((*self._placements, placed), [*self._ends, len(self._cached)], placed.end)
        k, v = self._memory.load(pages, num_tokens)
        return BlockKV(shift(k, -delta, self._inv_freq), v)

    def close(self) -> None:
        self._forget([*self._held, *self._sealed])
        self._give_back_own()
        self._cached = self._table(())
        self._set((), [], 0)

    # ── what a step needs ────────────────────────────────────────────────────────────────────────────────────

    def reserve(self, num_tokens: int) -> SequencePages:
        """Everything that the next tokens see, and pages to which they go. Then :meth:`advance`."""
        missing = self._memory.num_pages_for(self._num_new + num_tokens) - len(self._own)
        if missing > 0:
            self._own += self._memory.pool.allocate(missing)
        own = np.array(self._own[: self._memory.num_pages_for(self._num_new + num_tokens)], dtype=np.int32)
        return SequencePages(self._cached, own, self._num_new, self.position)

    def advance(self, num_tokens: int) -> None:
        """All layers have stored these new tokens."""
        self._num_new += num_tokens

    @property
    def new_kv(self) -> BlockKV:
        """A copy of the new tokens' keys and values, as they were computed."""
        return self._memory.load(self._own, self._num_new)

    def _entry(self, placement: Placement) -> _Entry:
        block = placement.block
        if (sealed := self._sealed.get(block.id)) is not None:
            return _Entry(sealed.pages, placement.delta - sealed.delta, block.num_tokens)
        return _Entry(self._memory.pages_of(block.id), placement.delta, block.num_tokens)

    def _set(self, placements: tuple[Placement, ...], ends: list[int], layout_end: int) -> None:
        """`ends`: behind which row of the table each placement ends."""
        self._placements, self._ends, self._layout_end = placements, ends, layout_end

    def _forget(self, block_ids: Iterable[BlockId]) -> None:
        for block_id in block_ids:
            if (sealed := self._sealed.pop(block_id, None)) is not None:
                self._memory.pool.free(sealed.pages)
            else:
                self._cache.release([self._held.pop(block_id)])

    def _table(self, entries: Iterable[_Entry]) -> Ints:
        """The pages of these entries, as in :class:`~npc_engine.inference.paged_attention.SequencePages`."""
        size = self._memory.page_tokens
        numbers = [
            (page, entry.delta, min(size, entry.num_tokens - i * size))
            for entry in entries
            for i, page in enumerate(entry.pages)
        ]
        return np.array(numbers, dtype=np.int32).reshape(-1, ENTRY)

    def _give_back_own(self) -> None:
        self._memory.pool.free(self._own)
        self._own, self._num_new = (), 0


class _Entry(NamedTuple):
    """A block's pages in a layout."""

    pages: tuple[int, ...]
    delta: int
    num_tokens: int


def _ends_of(entries: Iterable[_Entry], start: int) -> Iterator[int]:
    for entry in entries:
        start += len(entry.pages)
        yield start
