"""Attention over pages in one fused kernel (Triton), split over the keys and merged by log-sum-exp.

Tall and thin is the case that counts: 1 to 64 new tokens against tens of thousands of cached ones. So the grid is cut
along the keys until the device is full, heads that share keys share one read of them, and keys are rotated in registers
by the delta of their page. A second, small kernel merges the parts.
"""

from __future__ import annotations

from typing import Any, Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from npc_engine.inference.paged_attention import PagedBatch

_MAX_ROWS: Final = 64  # queries of one program: tokens times the heads that share keys
_PROGRAMS_PER_PROCESSOR: Final = 4
_MAX_SPLITS: Final = 64


class TritonBackend:
    """A :class:`~npc_engine.inference.paged_attention.PagedBackend` for CUDA devices.

    inv_freq: [head_dim / 2]; `max_positions` is the longest distance that a page can be from where it was encoded.
    """

    def __init__(self, inv_freq: Tensor, *, max_positions: int) -> None:
        # In float64: float32 loses the angle of far moves at high frequencies.
        angles = torch.arange(max_positions, device=inv_freq.device).double()[:, None] * inv_freq.double()
        self._cos, self._sin = angles.cos().float(), angles.sin().float()
        self._num_processors = 1
        if inv_freq.is_cuda:
            self._num_processors = torch.cuda.get_device_properties(inv_freq.device).multi_processor_count

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, batch: PagedBatch) -> Tensor:
        num_tokens, num_heads, head_dim = q.shape
        num_kv_heads = k.shape[0]
        group = num_heads // num_kv_heads
        num_sequences, max_pages = batch.pages.shape
        num_rows = min(_MAX_ROWS, max(16, triton.next_power_of_2(batch.max_queries * group)))
        num_tiles = triton.cdiv(batch.max_queries * group, num_rows)
        splits = self._num_splits(num_sequences * num_tiles * num_kv_heads, max_pages)
        parts = torch.empty(splits, num_tokens, num_heads, head_dim, dtype=torch.float32, device=q.device)
        log_sums = torch.empty(splits, num_tokens, num_heads, dtype=torch.float32, device=q.device)
        q = q.contiguous()
        _attend_part[(num_sequences * num_tiles, num_kv_heads, splits)](
            q,
            k,
            v,
            parts,
            log_sums,
            batch.query_starts,
            batch.pages,
            batch.deltas,
            batch.num_valid,
            batch.num_pages,
            batch.num_cached,
            batch.num_before,
            self._cos,
            self._sin,
            head_dim**-0.5 * 1.4426950408889634,  # exp2 is what the hardware has
            k.stride(0),
            num_tokens,
            num_tiles,
            max_pages,
            num_heads,
            GROUP=group,
            HALF=head_dim // 2,
            PAGE=batch.page_tokens,
            ROWS=num_rows,
        )
        out = torch.empty_like(q)
        _merge[(num_tokens * num_heads,)](
            parts, log_sums, out, num_tokens * num_heads, splits, SPLITS=triton.next_power_of_2(splits), DIM=head_dim
        )
        return out

    def _num_splits(self, num_programs: int, max_pages: int) -> int:
        wanted = triton.cdiv(_PROGRAMS_PER_PROCESSOR * self._num_processors, num_programs)
        return max(1, min(int(wanted), _MAX_SPLITS, max_pages))


@triton.jit
def _attend_part(
    q_ptr: Any,
    k_ptr: Any,
    v_ptr: Any,
    parts_ptr: Any,
    log_sums_ptr: Any,
    query_starts_ptr: Any,
    pages_ptr: Any,
    deltas_ptr: Any,
    num_valid_ptr: Any,
    num_pages_ptr: Any,
    num_cached_ptr: Any,
    num_before_ptr: Any,
    cos_ptr: Any,
    sin_ptr: Any,
    scale: Any,
    head_stride: Any,
    num_tokens: Any,
    num_tiles: Any,
    max_pages: Any,
    num_heads: Any,
    GROUP: tl.constexpr,
    HALF: tl.constexpr,
    PAGE: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """One sequence's queries of one key/value head against one part of its pages.

    parts: [splits, tokens, heads, head_dim], normalized within the part; log_sums: [splits, tokens, heads], base 2.
    """
    DIM: tl.constexpr = 2 * HALF
    sequence = tl.program_id(0) // num_tiles
    tile = tl.program_id(0) % num_tiles
    kv_head = tl.program_id(1)
    split = tl.program_id(2)

    first = tl.load(query_starts_ptr + sequence)
    num_queries = tl.load(query_starts_ptr + sequence + 1) - first
    rows = tile * ROWS + tl.arange(0, ROWS)
    token = rows // GROUP  # of the sequence
    is_row = token < num_queries
    at = ((first + token) * num_heads + kv_head * GROUP + rows % GROUP).to(tl.int64)

    half = tl.arange(0, HALF)
    dim = tl.arange(0, DIM)
    q_low = tl.load(q_ptr + at[:, None] * DIM + half[None, :], mask=is_row[:, None], other=0.0)
    q_high = tl.load(q_ptr + at[:, None] * DIM + HALF + half[None, :], mask=is_row[:, None], other=0.0)

    num_pages = tl.load(num_pages_ptr + sequence)
    num_cached = tl.load(num_cached_ptr + sequence)
    num_before = tl.load(num_before_ptr + sequence)
    per_split = tl.cdiv(num_pages, tl.num_programs(2))
    start = split * per_split
    stop = tl.minimum(start + per_split, num_pages)

    largest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    out = tl.zeros([ROWS, DIM], tl.float32)
    offset = tl.arange(0, PAGE)
    for i in range(start, stop):
        entry = sequence * max_pages + i
        page = tl.load(pages_ptr + entry).to(tl.int64)
        delta = tl.load(deltas_ptr + entry)
        num_valid = tl.load(num_valid_ptr + entry)
        base = kv_head.to(tl.int64) * head_stride + page * PAGE * DIM
        k_low = tl.load(k_ptr + base + offset[:, None] * DIM + half[None, :])
        k_high = tl.load(k_ptr + base + offset[:, None] * DIM + HALF + half[None, :])
        if delta != 0:
            cos = tl.load(cos_ptr + tl.abs(delta) * HALF + half)[None, :]
            sin = tl.load(sin_ptr + tl.abs(delta) * HALF + half)[None, :]
            sin = tl.where(delta < 0, -sin, sin)
            low, high = k_low.to(tl.float32), k_high.to(tl.float32)
            k_low = (low * cos - high * sin).to(k_low.dtype)
            k_high = (high * cos + low * sin).to(k_high.dtype)
        scores = tl.dot(q_low, tl.trans(k_low), input_precision="ieee")
        scores = (scores + tl.dot(q_high, tl.trans(k_high), input_precision="ieee")) * scale
        # Of its own tokens, a query sees those up to itself.
        own = (i - num_cached) * PAGE + offset
        is_seen = tl.where(i < num_cached, offset[None, :] < num_valid, own[None, :] <= num_before + token[:, None])
        scores = tl.where(is_seen, scores, float("-inf"))

        larger = tl.maximum(largest, tl.max(scores, 1))
        anchor = tl.where(larger == float("-inf"), 0.0, larger)  # nothing seen so far
        weights = tl.exp2(scores - anchor[:, None])
        shrink = tl.exp2(largest - anchor)
        values = tl.load(v_ptr + base + offset[:, None] * DIM + dim[None, :])
        # What lies behind the last token of a page was never written, and 0 times that may be anything.
        is_written = tl.where(i < num_cached, offset < num_valid, own < num_before + num_queries)
        values = tl.where(is_written[:, None], values, 0.0).to(values.dtype)
        out = out * shrink[:, None] + tl.dot(weights.to(values.dtype), values, input_precision="ieee")
        total = total * shrink + tl.sum(weights, 1)
        largest = larger

    is_some = total > 0
    out = tl.where(is_some[:, None], out / total[:, None], 0.0)
    log_sum = tl.where(is_some, largest + tl.log2(total), float("-inf"))
    place = split.to(tl.int64) * num_tokens * num_heads + at
    tl.store(parts_ptr + place[:, None] * DIM + dim[None, :], out, mask=is_row[:, None])
    tl.store(log_sums_ptr + place, log_sum, mask=is_row)


@triton.jit
def _merge(
    parts_ptr: Any,
    log_sums_ptr: Any,
    out_ptr: Any,
    num_rows: Any,
    num_splits: Any,
    SPLITS: tl.constexpr,
    DIM: tl.constexpr,
) -> None:
    """The parts of one row, weighted by their log-sum-exp."""
    row = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, SPLITS)
    is_part = split < num_splits
    dim = tl.arange(0, DIM)
    log_sums = tl.load(log_sums_ptr + split * num_rows + row, mask=is_part, other=float("-inf"))
    weights = tl.exp2(log_sums - tl.max(log_sums, 0))
    parts = tl.load(
        parts_ptr + (split * num_rows + row)[:, None] * DIM + dim[None, :], mask=is_part[:, None], other=0.0
    )
    out = tl.sum(parts * weights[:, None], 0) / tl.sum(weights, 0)
    tl.store(out_ptr + row * DIM + dim, out.to(out_ptr.dtype.element_ty))
