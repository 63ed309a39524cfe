"""A conversation's context in pages: a table of where its blocks are cached, and pages of its own behind them."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from npc_engine.blocks import Block, BlockCache, BlockId, BlockKV, Layout, Placement
from npc_engine.blocks.pages import PagedKV
from npc_engine.blocks.positions import shift
from npc_engine.inference.paged_attention import CachedPages, SequencePages


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
        self._set((), [], CachedPages.joined(()), (), 0)
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
        kept = self._cached.up_to(*(self._ends[same - 1] if same else (0, 0)))
        self._set(layout.placements, self._ends[:same], kept, [self._pages_of(p) for p in new], layout.end)
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
        row = self._placements[-1].rows.stop if self._placements else 0
        placed = Placement(block, self._layout_end, row)
        sealed = CachedPages.of(pages, 0, num_tokens, self._memory.page_tokens)
        self._set((*self._placements, placed), self._ends, self._cached, [sealed], placed.end)
        k, v = self._memory.load(pages, num_tokens)
        return BlockKV(shift(k, -delta, self._inv_freq), v)

    def close(self) -> None:
        self._forget([*self._held, *self._sealed])
        self._give_back_own()
        self._set((), [], CachedPages.joined(()), (), 0)

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

    def _pages_of(self, placement: Placement) -> CachedPages:
        block, size = placement.block, self._memory.page_tokens
        if (sealed := self._sealed.get(block.id)) is not None:
            return CachedPages.of(sealed.pages, placement.delta - sealed.delta, block.num_tokens, size)
        return CachedPages.of(self._memory.pages_of(block.id), placement.delta, block.num_tokens, size)

    def _set(
        self,
        placements: tuple[Placement, ...],
        ends: Sequence[tuple[int, int]],
        kept: CachedPages,
        new: Sequence[CachedPages],
        layout_end: int,
    ) -> None:
        """Placements whose pages are `kept`, which end at `ends` (pages, runs), and `new`."""
        self._ends = [*ends]
        num_pages, num_runs = ends[-1] if ends else (0, 0)
        for part in new:
            num_pages, num_runs = num_pages + len(part.pages), num_runs + len(part.runs)
            self._ends.append((num_pages, num_runs))
        self._cached = CachedPages.joined([kept, *new])
        self._placements, self._layout_end = placements, layout_end

    def _forget(self, block_ids: Iterable[BlockId]) -> None:
        for block_id in block_ids:
            if (sealed := self._sealed.pop(block_id, None)) is not None:
                self._memory.pool.free(sealed.pages)
            else:
                self._cache.release([self._held.pop(block_id)])

    def _give_back_own(self) -> None:
        self._memory.pool.free(self._own)
        self._own, self._num_new = (), 0
