"""The two ways to attend over a layout: move the cached keys, or turn the queries.

Both give the same result (RoPE is relative). :class:`AssembledContext` copies the blocks of a layout into one buffer
with their keys rotated to where they lie: the fastest to attend to on a CPU, for conversations that are going on.
:class:`SegmentedContext` copies nothing: it reads every block where it is cached and rotates the queries once per
block.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from npc_engine.blocks import Block, BlockId, BlockKV, KVShape, Layout, Placement
from npc_engine.blocks.positions import shift
from npc_engine.inference import huge_pages
from npc_engine.inference.attention import ContextWeighting, attend, attend_weighted

_CAPACITY_STEP = 512  # tokens by which a buffer grows, so that a conversation rarely moves


class AssembledContext:
    """A layout in one buffer, keys rotated to where they lie, with room for the tokens that follow.

    ::

        k, v   | header | block A | block B | turn 1 | new tokens … |  unused  |
                                                     num_tokens                capacity

    :meth:`place` touches only what changed. The cached blocks may be evicted afterwards.
    """

    def __init__(
        self, shape: KVShape, inv_freq: Tensor, device: torch.device, weighting: ContextWeighting | None = None
    ) -> None:
        self._shape = shape
        self._inv_freq = inv_freq
        self._device = device
        self._weighting = weighting
        self._kv = shape.empty(_CAPACITY_STEP, device)
        self._placed: list[Placement] = []
        self._relinked: tuple[Placement, ...] = ()
        self._num_rows = 0
        self._position = 0

    @property
    def num_tokens(self) -> int:
        return self._num_rows

    @property
    def position(self) -> int:
        return self._position

    @property
    def num_bytes(self) -> int:
        return self._kv.num_bytes

    @property
    def holds_blocks(self) -> bool:
        return False  # it has copies

    def stale(self, layout: Layout) -> list[Placement]:
        """The placements of `layout` that are not in the buffer yet."""
        outdated = set(self._relinked[self._num_still_linked(layout) :])
        placed = set(self._placed) - outdated
        return [placement for placement in layout.placements if placement not in placed]

    def place(self, layout: Layout, kv_of: Callable[[BlockId], BlockKV], room: int = 0) -> int:
        """Make the buffer hold exactly `layout`, and `room` for tokens behind it.

        `kv_of` gives the cached blocks. Returns the tokens that were copied.
        """
        stale = self.stale(layout)
        self._relinked = self._relinked[: self._num_still_linked(layout)]
        self._placed = []  # stays true if a copy fails midway
        self._num_rows, self._position = layout.num_tokens, layout.end
        self._reserve(layout.num_tokens + room)
        for placement in stale:
            k, v = kv_of(placement.block.id)
            self._kv.k[:, :, placement.rows] = shift(k, placement.delta, self._inv_freq)
            self._kv.v[:, :, placement.rows] = v
        self._placed = list(layout.placements)
        return sum(placement.block.num_tokens for placement in stale)

    def seal(self, block: Block) -> BlockKV:
        """The tokens behind the layout become `block`, in place.

        Returns a copy of its keys and values for the cache.
        """
        row = self._placed[-1].rows.stop
        assert row + block.num_tokens <= self._num_rows
        placement = Placement(block, self._position - (self._num_rows - row), row)
        self._placed.append(placement)
        self._num_rows, self._position = placement.rows.stop, placement.end
        k, v = self._kv.k[:, :, placement.rows], self._kv.v[:, :, placement.rows]
        return BlockKV(shift(k, -placement.delta, self._inv_freq).clone(), v.clone())

    def close(self) -> None:
        """Give the memory back; the context is over."""
        self._placed, self._relinked = [], ()
        self._kv = self._shape.empty(0, self._device)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        end = self._num_rows + q.shape[0]
        if layer == 0:
            self._reserve(end)
        keys, values = self._kv.k[layer], self._kv.v[layer]
        keys[:, self._num_rows : end] = k.transpose(0, 1)
        values[:, self._num_rows : end] = v.transpose(0, 1)
        if self._weighting is not None:
            return attend_weighted(q, keys[:, :end], values[:, :end], self._weighted_rows, self._weighting)
        return attend([q], [keys[:, :end]], [values[:, :end]])

    def advance(self, num_tokens: int) -> None:
        self._num_rows += num_tokens
        self._position += num_tokens

    # ── re-linking ───────────────────────────────────────────────────────────────────────────────────────────

    @property
    def placed(self) -> tuple[Placement, ...]:
        return tuple(self._placed)

    @property
    def num_relinked(self) -> int:
        """How many of the placements in front have been linked to each other."""
        return len(self._relinked)

    def rows_of(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of one layer: each [kv_heads, tokens, head_dim]."""
        return self._kv.k[layer, :, : self._num_rows], self._kv.v[layer, :, : self._num_rows]

    def relink(self, rows: Tensor, kv: BlockKV, placements: Sequence[Placement]) -> None:
        """Put recomputed keys and values into these rows; they now depend on all of `placements`."""
        self._kv.k[:, :, rows] = kv.k
        self._kv.v[:, :, rows] = kv.v
        self._relinked = tuple(placements)

    def _num_still_linked(self, layout: Layout) -> int:
        """How many relinked placements in front see nothing but what this layout has, too."""
        pairs = zip(self._relinked, layout.placements, strict=False)
        return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))

    @property
    def _weighted_rows(self) -> slice:
        """Of the blocks that were encoded behind the header alone; turns were encoded behind everything."""
        between = [p for p in self._placed if len(p.block.parents) == 1]
        return slice(between[0].row, between[-1].rows.stop) if between else slice(0, 0)

    def _reserve(self, num_tokens: int) -> None:
        capacity = self._kv.num_tokens
        if num_tokens <= capacity:
            return
        grown = self._shape.empty(-(-num_tokens // _CAPACITY_STEP) * _CAPACITY_STEP, self._device)
        huge_pages.use_for(grown.k)
        huge_pages.use_for(grown.v)
        grown.k[:, :, :capacity] = self._kv.k
        grown.v[:, :, :capacity] = self._kv.v
        self._kv = grown


class Segment(NamedTuple):
    """A cached block in place: `delta` is how far its keys would have to move."""

    kv: BlockKV
    delta: int


class SegmentedContext:
    """A layout read where its blocks are cached; the tokens that follow go into a buffer of `max_new_tokens`.

    The blocks have to be held as long as the context is used.
    """

    def __init__(
        self,
        shape: KVShape,
        inv_freq: Tensor,
        device: torch.device,
        layout: Layout,
        kv_of: Callable[[BlockId], BlockKV],
        max_new_tokens: int,
    ) -> None:
        self._inv_freq = inv_freq
        self.segments = [Segment(kv_of(p.block.id), p.delta) for p in layout.placements]
        self._new = shape.empty(max_new_tokens, device)
        self._num_new = 0
        self._start = layout.end

    @property
    def position(self) -> int:
        return self._start + self._num_new

    @property
    def new_kv(self) -> BlockKV:
        """Keys and values of the tokens behind the layout, without a copy."""
        return BlockKV(self._new.k[:, :, : self._num_new], self._new.v[:, :, : self._num_new])

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        end = self._num_new + q.shape[0]
        self._new.k[layer, :, self._num_new : end] = k.transpose(0, 1)
        self._new.v[layer, :, self._num_new : end] = v.transpose(0, 1)
        # A query that turns back by delta sees the block's keys as if they had moved forward by delta.
        queries = [shift(q, -segment.delta, self._inv_freq) for segment in self.segments]
        keys = [segment.kv.k[layer] for segment in self.segments]
        values = [segment.kv.v[layer] for segment in self.segments]
        return attend([*queries, q], [*keys, self._new.k[layer, :, :end]], [*values, self._new.v[layer, :, :end]])

    def advance(self, num_tokens: int) -> None:
        self._num_new += num_tokens

    def close(self) -> None:
        """Nothing to give back."""
