"""Attention over pages in fused kernels (Triton), split over the keys and merged by log-sum-exp.

Tall and thin is the case that counts: 1 to 64 new tokens against tens of thousands of cached ones. So the grid is cut
along the keys until the device is full, heads that share keys share one read of them, and keys are rotated in registers
by the delta of their page. Grids depend on a step's shape alone, so that a CUDA graph of a step serves any layout.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from npc_engine.inference.paged_attention import PagedStep
from npc_engine.inference.rope import RotaryTable

_LOG2_E: Final = 1.4426950408889634  # exp2 is what the hardware has


class Tuning(NamedTuple):
    """How the kernel is cut, by the most rows (queries times the heads that share keys) of a sequence."""

    num_rows: int  # of one program
    num_warps: int
    num_stages: int
    programs_per_processor: int


def tuning_for(num_rows: int) -> Tuning:
    """What measured best (docs/log.md)."""
    if num_rows <= 16:
        return Tuning(16, 4, 3, 4)
    if num_rows <= 64:
        return Tuning(64, 4, 3, 3)
    return Tuning(128, 8, 3, 2)


class TritonBackend:
    """A :class:`~npc_engine.inference.paged_attention.PagedBackend` for CUDA devices.

    `max_positions` bounds positions, and how far a page can be from where it was encoded.
    """

    def __init__(
        self, rope: RotaryTable, *, max_positions: int, max_splits: int = 64, tuning: Tuning | None = None
    ) -> None:
        inv_freq = rope.inv_freq
        # In float64: float32 loses the angle of far moves at high frequencies.
        angles = torch.arange(max_positions, device=inv_freq.device).double()[:, None] * inv_freq.double()
        self._cos, self._sin = angles.cos().float(), angles.sin().float()
        self._scale = rope.scale
        self._max_splits = max_splits
        self._tuning = tuning
        self._num_processors = 1
        if inv_freq.is_cuda:
            self._num_processors = torch.cuda.get_device_properties(inv_freq.device).multi_processor_count

    def store(self, qk: Tensor, v: Tensor, keys: Tensor, values: Tensor, step: PagedStep) -> Tensor:
        num_tokens, num_qk_heads, head_dim = qk.shape
        num_kv_heads = v.shape[1]
        num_heads = num_qk_heads - num_kv_heads
        assert qk.stride(1) == v.stride(1) == head_dim, "heads of a token lie side by side"
        q = torch.empty(num_tokens, num_heads, head_dim, dtype=qk.dtype, device=qk.device)
        _rotate_and_store[(num_tokens, num_qk_heads + num_kv_heads)](
            qk,
            v,
            q,
            keys,
            values,
            step.positions,
            step.rows,
            self._cos,
            self._sin,
            self._scale,
            qk.stride(0),
            v.stride(0),
            keys.stride(0),
            num_heads,
            num_kv_heads,
            HALF=head_dim // 2,
            num_warps=1,
        )
        return q

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, step: PagedStep) -> Tensor:
        num_tokens, num_heads, head_dim = q.shape
        num_kv_heads = keys.shape[0]
        group = num_heads // num_kv_heads
        most_rows = step.shape.max_queries * group
        tuning = self._tuning or tuning_for(most_rows)
        num_tiles = triton.cdiv(most_rows, tuning.num_rows)
        num_programs = step.shape.num_sequences * num_tiles * num_kv_heads
        splits = self._num_splits(tuning, num_programs)
        out = torch.empty_like(q)
        parts = torch.empty(
            splits if splits > 1 else 0, num_tokens, num_heads, head_dim, dtype=torch.float32, device=q.device
        )
        log_sums = torch.empty(splits, num_tokens, num_heads, dtype=torch.float32, device=q.device)
        _attend_part[(step.shape.num_sequences * num_tiles, num_kv_heads, splits)](
            q,
            keys,
            values,
            parts if splits > 1 else out,
            log_sums,
            step.query_starts,
            step.entry_starts,
            step.entries,
            step.num_cached,
            step.num_before,
            self._cos,
            self._sin,
            head_dim**-0.5 * _LOG2_E,
            keys.stride(0),
            num_tokens,
            num_tiles,
            num_heads,
            GROUP=group,
            HALF=head_dim // 2,
            PAGE=step.page_tokens,
            ROWS=tuning.num_rows,
            IS_WHOLE=splits == 1,
            num_warps=tuning.num_warps,
            num_stages=tuning.num_stages,
        )
        if splits > 1:
            _merge[(num_tokens * num_heads,)](
                parts,
                log_sums,
                out,
                num_tokens * num_heads,
                splits,
                SPLITS=triton.next_power_of_2(splits),
                DIM=head_dim,
                num_warps=2,
            )
        return out

    def _num_splits(self, tuning: Tuning, num_programs: int) -> int:
        return max(1, min(tuning.programs_per_processor * self._num_processors // num_programs, self._max_splits))


@triton.jit
def _rotate_and_store(
    qk_ptr: Any,
    v_ptr: Any,
    q_ptr: Any,
    keys_ptr: Any,
    values_ptr: Any,
    positions_ptr: Any,
    rows_ptr: Any,
    cos_ptr: Any,
    sin_ptr: Any,
    scale: Any,
    qk_stride: Any,
    v_stride: Any,
    head_stride: Any,
    num_heads: Any,
    num_kv_heads: Any,
    HALF: tl.constexpr,
) -> None:
    """One head of one token: a query is rotated, a key rotated and stored, a value stored."""
    DIM: tl.constexpr = 2 * HALF
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    half = tl.arange(0, HALF)
    row = tl.load(rows_ptr + token).to(tl.int64)
    if head >= num_heads + num_kv_heads:
        head -= num_heads + num_kv_heads
        source = v_ptr + token * v_stride + head * DIM
        target = values_ptr + head.to(tl.int64) * head_stride + row * DIM
        tl.store(target + half, tl.load(source + half))
        tl.store(target + HALF + half, tl.load(source + HALF + half))
    else:
        position = tl.load(positions_ptr + token)
        cos = tl.load(cos_ptr + position * HALF + half) * scale
        sin = tl.load(sin_ptr + position * HALF + half) * scale
        source = qk_ptr + token * qk_stride + head * DIM
        low = tl.load(source + half).to(tl.float32)
        high = tl.load(source + HALF + half).to(tl.float32)
        if head < num_heads:
            target = q_ptr + (token * num_heads + head) * DIM
        else:
            target = keys_ptr + (head - num_heads).to(tl.int64) * head_stride + row * DIM
        tl.store(target + half, (low * cos - high * sin).to(q_ptr.dtype.element_ty))
        tl.store(target + HALF + half, (high * cos + low * sin).to(q_ptr.dtype.element_ty))


@triton.jit
def _attend_part(
    q_ptr: Any,
    k_ptr: Any,
    v_ptr: Any,
    parts_ptr: Any,
    log_sums_ptr: Any,
    query_starts_ptr: Any,
    entry_starts_ptr: Any,
    entries_ptr: Any,
    num_cached_ptr: Any,
    num_before_ptr: Any,
    cos_ptr: Any,
    sin_ptr: Any,
    scale: Any,
    head_stride: Any,
    num_tokens: Any,
    num_tiles: Any,
    num_heads: Any,
    GROUP: tl.constexpr,
    HALF: tl.constexpr,
    PAGE: tl.constexpr,
    ROWS: tl.constexpr,
    IS_WHOLE: tl.constexpr,
) -> None:
    """One sequence's queries of one key/value head against one part of its pages.

    parts: [splits, tokens, heads, head_dim], normalized within the part; log_sums: [splits, tokens, heads], base 2.
    """
    DIM: tl.constexpr = 2 * HALF
    sequence = tl.program_id(0) // num_tiles
    tile = tl.program_id(0) % num_tiles
    kv_head = tl.program_id(1).to(tl.int64)
    split = tl.program_id(2)

    first = tl.load(query_starts_ptr + sequence)
    num_queries = tl.load(query_starts_ptr + sequence + 1) - first
    rows = tile * ROWS + tl.arange(0, ROWS)
    token = rows // GROUP  # of the sequence
    is_row = token < num_queries
    if tile * ROWS < num_queries * GROUP:
        at = ((first + token) * num_heads + kv_head * GROUP + rows % GROUP).to(tl.int64)
        half = tl.arange(0, HALF)
        dim = tl.arange(0, DIM)
        q_low = tl.load(q_ptr + at[:, None] * DIM + half[None, :], mask=is_row[:, None], other=0.0)
        q_high = tl.load(q_ptr + at[:, None] * DIM + HALF + half[None, :], mask=is_row[:, None], other=0.0)

        entry = tl.load(entry_starts_ptr + sequence)
        num_pages = tl.load(entry_starts_ptr + sequence + 1) - entry
        num_cached = tl.load(num_cached_ptr + sequence)
        num_before = tl.load(num_before_ptr + sequence)
        per_split = tl.cdiv(num_pages, tl.num_programs(2))
        start = split * per_split
        stop = tl.minimum(start + per_split, num_pages)

        largest = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        out = tl.zeros([ROWS, DIM], tl.float32)
        offset = tl.arange(0, PAGE)
        k_ptr += kv_head * head_stride
        v_ptr += kv_head * head_stride

        # What is cached: every query sees all of it.
        for i in range(start, tl.minimum(stop, num_cached)):
            page = tl.load(entries_ptr + (entry + i) * 3).to(tl.int64)
            delta = tl.load(entries_ptr + (entry + i) * 3 + 1)
            num_valid = tl.load(entries_ptr + (entry + i) * 3 + 2)
            base = (page * PAGE + offset)[:, None] * DIM
            is_valid = offset < num_valid
            low = tl.load(k_ptr + base + half[None, :], mask=is_valid[:, None], other=0.0).to(tl.float32)
            high = tl.load(k_ptr + base + HALF + half[None, :], mask=is_valid[:, None], other=0.0).to(tl.float32)
            values = tl.load(v_ptr + base + dim[None, :], mask=is_valid[:, None], other=0.0)
            cos = tl.load(cos_ptr + tl.abs(delta) * HALF + half)[None, :]
            sin = tl.load(sin_ptr + tl.abs(delta) * HALF + half)[None, :]
            sin = tl.where(delta < 0, -sin, sin)
            k_low = (low * cos - high * sin).to(q_low.dtype)
            k_high = (high * cos + low * sin).to(q_low.dtype)
            scores = tl.dot(q_low, tl.trans(k_low), input_precision="ieee")
            scores = tl.dot(q_high, tl.trans(k_high), scores, input_precision="ieee") * scale
            scores = tl.where(is_valid[None, :], scores, float("-inf"))
            # No page is empty, so the largest score is finite from the first one on.
            larger = tl.maximum(largest, tl.max(scores, 1))
            weights = tl.exp2(scores - larger[:, None])
            shrink = tl.exp2(largest - larger)
            out = tl.dot(weights.to(values.dtype), values, out * shrink[:, None], input_precision="ieee")
            total = total * shrink + tl.sum(weights, 1)
            largest = larger

        # Its own tokens: a query sees those up to itself, at delta 0.
        for i in range(tl.maximum(start, num_cached), stop):
            page = tl.load(entries_ptr + (entry + i) * 3).to(tl.int64)
            own = (i - num_cached) * PAGE + offset
            is_written = own < num_before + num_queries
            base = (page * PAGE + offset)[:, None] * DIM
            k_low = tl.load(k_ptr + base + half[None, :], mask=is_written[:, None], other=0.0)
            k_high = tl.load(k_ptr + base + HALF + half[None, :], mask=is_written[:, None], other=0.0)
            values = tl.load(v_ptr + base + dim[None, :], mask=is_written[:, None], other=0.0)
            scores = tl.dot(q_low, tl.trans(k_low), input_precision="ieee")
            scores = tl.dot(q_high, tl.trans(k_high), scores, input_precision="ieee") * scale
            scores = tl.where(own[None, :] <= num_before + token[:, None], scores, float("-inf"))
            larger = tl.maximum(largest, tl.max(scores, 1))
            anchor = tl.where(larger == float("-inf"), 0.0, larger)  # nothing seen so far
            weights = tl.exp2(scores - anchor[:, None])
            shrink = tl.exp2(largest - anchor)
            out = tl.dot(weights.to(values.dtype), values, out * shrink[:, None], input_precision="ieee")
            total = total * shrink + tl.sum(weights, 1)
            largest = larger

        is_some = total > 0
        out = tl.where(is_some[:, None], out / total[:, None], 0.0)
        if IS_WHOLE:
            tl.store(parts_ptr + at[:, None] * DIM + dim[None, :], out.to(q_low.dtype), mask=is_row[:, None])
        else:
            log_sum = tl.where(is_some, largest + tl.log2(total), float("-inf"))
            place = split.to(tl.int64) * num_tokens * num_heads + at
            tl.store(parts_ptr + place[:, None] * DIM + dim[None, :], out, mask=is_row[:, None] & is_some[:, None])
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
    """The parts of one row, weighted by their log-sum-exp. Parts without any key were never written."""
    row = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, SPLITS)
    dim = tl.arange(0, DIM)
    log_sums = tl.load(log_sums_ptr + split * num_rows + row, mask=split < num_splits, other=float("-inf"))
    is_part = log_sums > float("-inf")
    weights = tl.where(is_part, tl.exp2(log_sums - tl.max(log_sums, 0)), 0.0)
    parts = tl.load(
        parts_ptr + (split * num_rows + row)[:, None] * DIM + dim[None, :], mask=is_part[:, None], other=0.0
    )
    out = tl.sum(parts * weights[:, None], 0) / tl.sum(weights, 0)
    tl.store(out_ptr + row * DIM + dim, out.to(out_ptr.dtype.element_ty))


def silu_mul(gate_up: Tensor) -> Tensor:
    """``silu(gate) * up`` of [tokens, 2 * n], gate first, in one pass. Returns [tokens, n]."""
    num_tokens, width = gate_up.shape
    out = torch.empty(num_tokens, width // 2, dtype=gate_up.dtype, device=gate_up.device)
    _silu_mul[(num_tokens, triton.cdiv(width // 2, 1024))](gate_up, out, width // 2, COLUMNS=1024, num_warps=4)
    return out


@triton.jit
def _silu_mul(gate_up_ptr: Any, out_ptr: Any, width: Any, COLUMNS: tl.constexpr) -> None:
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    is_column = column < width
    gate = tl.load(gate_up_ptr + token * 2 * width + column, mask=is_column, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + token * 2 * width + width + column, mask=is_column, other=0.0).to(tl.float32)
    gate = gate / (1 + tl.exp(-gate))
    tl.store(out_ptr + token * width + column, (gate * up).to(out_ptr.dtype.element_ty), mask=is_column)
