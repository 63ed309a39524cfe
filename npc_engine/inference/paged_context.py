"""A conversation's context in pages: a table of where its blocks are cached, and pages of its own behind them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from torch import Tensor

from npc_engine.blocks import Block, BlockCache, BlockId, BlockKV, Layout, Placement
from npc_engine.blocks.pages import PagedKV
from npc_engine.blocks.positions import shift
from npc_engine.inference.paged_attention import Ints, SequencePages


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
        self._cached = _Tables.of(memory.page_tokens, ())
        self._layout_end = 0
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
        wanted = {p.block.id: p.block for p in layout.placements if p.block.id not in self._sealed}
        fresh = [block for block_id, block in wanted.items() if block_id not in self._held]
        missing = self._cache.acquire(fresh)
        assert not missing, "what is stale has to be cached"
        self._cache.release(block for block_id, block in self._held.items() if block_id not in wanted)
        self._held = wanted
        self._forget_turns({p.block.id for p in layout.placements})
        self._cached = _Tables.of(self._memory.page_tokens, (self._entry(p) for p in layout.placements))
        self._layout_end = layout.end
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
        self._cached = self._cached.and_one(self._memory.page_tokens, _Entry(pages, 0, num_tokens))
        self._layout_end += num_tokens
        k, v = self._memory.load(pages, num_tokens)
        return BlockKV(shift(k, -delta, self._inv_freq), v)

    def close(self) -> None:
        self._cache.release(self._held.values())
        self._held = {}
        self._forget_turns(set())
        self._give_back_own()
        self._cached = _Tables.of(self._memory.page_tokens, ())
        self._layout_end = 0

    # ── what attention needs ─────────────────────────────────────────────────────────────────────────────────

    def reserve(self, num_tokens: int) -> Tensor:
        missing = self._memory.num_pages_for(self._num_new + num_tokens) - len(self._own)
        if missing > 0:
            self._own += self._memory.pool.allocate(missing)
        return self._memory.rows(self._own, self._num_new, self._num_new + num_tokens)

    def sequence_pages(self) -> SequencePages:
        return SequencePages(
            self._cached.pages,
            self._cached.deltas,
            self._cached.num_valid,
            np.array(self._own, dtype=np.int32),
            self._num_new,
        )

    def advance(self, num_tokens: int) -> None:
        self._num_new += num_tokens

    def _entry(self, placement: Placement) -> _Entry:
        block = placement.block
        if (sealed := self._sealed.get(block.id)) is not None:
            return _Entry(sealed.pages, placement.delta - sealed.delta, block.num_tokens)
        return _Entry(self._memory.pages_of(block.id), placement.delta, block.num_tokens)

    def _forget_turns(self, kept: set[BlockId]) -> None:
        for block_id in [block_id for block_id in self._sealed if block_id not in kept]:
            self._memory.pool.free(self._sealed.pop(block_id).pages)

    def _give_back_own(self) -> None:
        self._memory.pool.free(self._own)
        self._own, self._num_new = (), 0


class _Entry(NamedTuple):
    """A block's pages in a layout."""

    pages: tuple[int, ...]
    delta: int
    num_tokens: int


class _Tables(NamedTuple):
    """The pages of a layout, as in :class:`~npc_engine.inference.paged_attention.SequencePages`."""

    pages: Ints
    deltas: Ints
    num_valid: Ints

    @classmethod
    def of(cls, page_tokens: int, entries: Iterable[_Entry]) -> _Tables:
        pages: list[int] = []
        deltas: list[int] = []
        num_valid: list[int] = []
        for entry in entries:
            pages += entry.pages
            deltas += [entry.delta] * len(entry.pages)
            num_valid += (min(page_tokens, entry.num_tokens - i * page_tokens) for i in range(len(entry.pages)))
        return cls(*(np.array(numbers, dtype=np.int32) for numbers in (pages, deltas, num_valid)))

    def and_one(self, page_tokens: int, entry: _Entry) -> _Tables:
        more = _Tables.of(page_tokens, [entry])
        return _Tables(*(np.concatenate(pair) for pair in zip(self, more, strict=True)))
