"""KV memory on an accelerator: one allocation, cut into pages of a fixed number of tokens.

A block, or a conversation's new tokens, owns whole pages; any number of layouts refer to a block's pages, so assembling
a layout copies nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from npc_engine.blocks.block import BlockId
from npc_engine.blocks.kv import BlockKV, KVShape
from npc_engine.errors import BlockMemoryError


class PagePool:
    """Which pages are free. Knows no tensors."""

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self._free = list(range(num_pages - 1, -1, -1))  # the last one given back is the first one taken

    @property
    def num_free(self) -> int:
        return len(self._free)

    def allocate(self, number: int) -> tuple[int, ...]:
        """Take pages. Raises :class:`BlockMemoryError`, and takes none, if there are not as many."""
        if number > len(self._free):
            raise BlockMemoryError(
                f"{number} pages of KV memory are needed, {len(self._free)} of {self.num_pages} are free; "
                "raise --max-block-memory"
            )
        return tuple(self._free.pop() for _ in range(number))

    def free(self, pages: Sequence[int]) -> None:
        """Give pages back."""
        self._free.extend(pages)

    def check_integrity(self) -> None:
        """Assert every invariant; for tests."""
        assert len(set(self._free)) == len(self._free), "a page was given back twice"
        assert all(0 <= page < self.num_pages for page in self._free)


class _PagedBlock(NamedTuple):
    pages: tuple[int, ...]
    num_tokens: int


class PagedKV:
    """A :class:`~npc_engine.blocks.kv.KVMemory` in pages.

    `k`, `v`: [layers, kv_heads, pages * page_tokens, head_dim].
    """

    def __init__(self, shape: KVShape, *, num_pages: int, page_tokens: int, device: torch.device) -> None:
        self.shape = shape
        self.page_tokens = page_tokens
        self.pool = PagePool(num_pages)
        self._blocks: dict[BlockId, _PagedBlock] = {}
        self.k, self.v = shape.empty(num_pages * page_tokens, device)

    @classmethod
    def of_bytes(cls, shape: KVShape, max_bytes: int, *, page_tokens: int, device: torch.device) -> PagedKV:
        """As many pages as fit into `max_bytes`."""
        return cls(shape, num_pages=max_bytes // shape.num_bytes(page_tokens), page_tokens=page_tokens, device=device)

    def num_pages_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.page_tokens)

    # ── cached blocks ────────────────────────────────────────────────────────────────────────────────────────

    def num_bytes_for(self, num_tokens: int) -> int:
        return self.shape.num_bytes(self.num_pages_for(num_tokens) * self.page_tokens)

    def insert(self, block_id: BlockId, kv: BlockKV) -> None:
        self._blocks[block_id] = _PagedBlock(self.store(kv), kv.num_tokens)

    def get(self, block_id: BlockId) -> BlockKV:
        """A copy. Layouts use :meth:`pages_of` instead."""
        return self.load(*self._blocks[block_id])

    def remove(self, block_id: BlockId) -> None:
        self.pool.free(self._blocks.pop(block_id).pages)

    def pages_of(self, block_id: BlockId) -> tuple[int, ...]:
        """Where a cached block lies."""
        return self._blocks[block_id].pages

    # ── pages ────────────────────────────────────────────────────────────────────────────────────────────────

    def store(self, kv: BlockKV) -> tuple[int, ...]:
        """Copy a block's keys and values into pages of its own."""
        pages = self.pool.allocate(self.num_pages_for(kv.num_tokens))
        rows = self.rows(pages, 0, kv.num_tokens)
        self.k[:, :, rows] = kv.k
        self.v[:, :, rows] = kv.v
        return pages

    def load(self, pages: Sequence[int], num_tokens: int) -> BlockKV:
        """A copy of the first tokens in these pages."""
        rows = self.rows(pages, 0, num_tokens)
        return BlockKV(self.k[:, :, rows], self.v[:, :, rows])

    def rows(self, pages: Sequence[int], start: int, stop: int) -> Tensor:
        """Where the tokens from `start` up to `stop` of these pages lie: [tokens], int64."""
        size = self.page_tokens
        return torch.tensor(
            [pages[i // size] * size + i % size for i in range(start, stop)], dtype=torch.long, device=self.k.device
        )
