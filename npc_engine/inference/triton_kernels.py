"""Triton kernels. Their parameters have no types: Triton gives them its own."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rotate_and_store_kernel(
    qk_ptr,
    v_ptr,
    q_ptr,
    keys_ptr,
    values_ptr,
    positions_ptr,
    rows_ptr,
    cos_ptr,
    sin_ptr,
    scale,
    qk_stride,
    v_stride,
    head_stride,
    num_heads,
    num_kv_heads,
    HALF: tl.constexpr,
):
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
def attend_to(q_low, q_high, k_low, k_high, values, is_seen, scale, largest, total, out):
    """Some more keys: the largest score, the sum of weights and the weighted values of each row, with them.

    Every row sees one of the first keys that it is given, so its largest score is finite from then on.
    """
    scores = tl.dot(q_low, tl.trans(k_low), input_precision="ieee")
    scores = tl.dot(q_high, tl.trans(k_high), scores, input_precision="ieee")
    scores = tl.where(is_seen, scores, float("-inf"))
    larger = tl.maximum(largest, tl.max(scores, 1))
    weights = tl.exp2(scores * scale - (larger * scale)[:, None])
    shrink = tl.exp2((largest - larger) * scale)
    total = total * shrink + tl.sum(weights, 1)
    out = tl.dot(weights.to(values.dtype), values, out * shrink[:, None], input_precision="ieee")
    return larger, total, out


@triton.jit
def attend_part_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    parts_ptr,
    log_sums_ptr,
    query_starts_ptr,
    run_starts_ptr,
    runs_ptr,
    page_starts_ptr,
    own_starts_ptr,
    pages_ptr,
    num_before_ptr,
    cos_ptr,
    sin_ptr,
    scale,
    head_stride,
    num_tokens,
    num_tiles,
    num_heads,
    GROUP: tl.constexpr,
    HALF: tl.constexpr,
    PAGE: tl.constexpr,
    PAGE_SHIFT: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    TURNS_QUERIES: tl.constexpr,
    IS_WHOLE: tl.constexpr,
):
    """One sequence's queries of one key/value head against one part of what it sees.

    Few queries are turned back by the delta of each run, and keys go from memory to the matrix units as they are,
    `TILE` at a time. Many queries stay as they are, and the keys of each page are moved (docs/log.md has the figures).

    parts: [splits, tokens, heads, head_dim], normalized within the part; log_sums: [splits, tokens, heads], base 2.
    Scores stay unscaled: exp2 takes the scale in the same operation.
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
        offset = tl.arange(0, TILE)
        q_low_ptr = q_ptr + at[:, None] * DIM + half[None, :]
        k_ptr += kv_head * head_stride
        v_ptr += kv_head * head_stride
        own_start = tl.load(own_starts_ptr + sequence)

        # The first part is the sequence's own tokens, the others share what is cached: runs, or pages.
        if TURNS_QUERIES:
            start = tl.load(run_starts_ptr + sequence)
            stop = tl.load(run_starts_ptr + sequence + 1)
        else:
            start = tl.load(page_starts_ptr + sequence)
            stop = own_start
        if not IS_WHOLE:
            per_split = tl.cdiv(stop - start, tl.num_programs(2) - 1)
            start += (split - 1) * per_split
            stop = tl.where(split == 0, start, tl.minimum(start + per_split, stop))

        largest = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        out = tl.zeros([ROWS, DIM], tl.float32)

        if TURNS_QUERIES:
            for run in range(start, stop):
                run_page = tl.load(runs_ptr + run * 2)
                num_keys = tl.load(runs_ptr + run * 2 + 1)
                delta = tl.load(pages_ptr + run_page * 3 + 1)
                cos = tl.load(cos_ptr + tl.abs(delta) * HALF + half)[None, :]
                sin = tl.load(sin_ptr + tl.abs(delta) * HALF + half)[None, :]
                sin = tl.where(delta < 0, -sin, sin)
                low = tl.load(q_low_ptr, mask=is_row[:, None], other=0.0)
                high = tl.load(q_low_ptr + HALF, mask=is_row[:, None], other=0.0)
                q_low = (low * cos + high * sin).to(low.dtype)
                q_high = (high * cos - low * sin).to(low.dtype)
                for key in range(0, num_keys, TILE):
                    is_key = key + offset < num_keys
                    entry = run_page + ((key + offset) >> PAGE_SHIFT)
                    page = tl.load(pages_ptr + entry * 3, mask=is_key, other=0).to(tl.int64)
                    base = (page * PAGE + ((key + offset) & (PAGE - 1)))[:, None] * DIM
                    k_low = tl.load(k_ptr + base + half[None, :], mask=is_key[:, None], other=0.0)
                    k_high = tl.load(k_ptr + base + HALF + half[None, :], mask=is_key[:, None], other=0.0)
                    values = tl.load(v_ptr + base + dim[None, :], mask=is_key[:, None], other=0.0)
                    largest, total, out = attend_to(
                        q_low, q_high, k_low, k_high, values, is_key[None, :], scale, largest, total, out
                    )

        q_low = tl.load(q_low_ptr, mask=is_row[:, None], other=0.0)
        q_high = tl.load(q_low_ptr + HALF, mask=is_row[:, None], other=0.0)

        if not TURNS_QUERIES:
            in_page = tl.arange(0, PAGE)
            for i in range(start, stop):
                page = tl.load(pages_ptr + i * 3).to(tl.int64)
                delta = tl.load(pages_ptr + i * 3 + 1)
                is_key = in_page < tl.load(pages_ptr + i * 3 + 2)
                cos = tl.load(cos_ptr + tl.abs(delta) * HALF + half)[None, :]
                sin = tl.load(sin_ptr + tl.abs(delta) * HALF + half)[None, :]
                sin = tl.where(delta < 0, -sin, sin)
                base = (page * PAGE + in_page)[:, None] * DIM
                low = tl.load(k_ptr + base + half[None, :], mask=is_key[:, None], other=0.0)
                high = tl.load(k_ptr + base + HALF + half[None, :], mask=is_key[:, None], other=0.0)
                values = tl.load(v_ptr + base + dim[None, :], mask=is_key[:, None], other=0.0)
                k_low = (low * cos - high * sin).to(low.dtype)
                k_high = (high * cos + low * sin).to(low.dtype)
                largest, total, out = attend_to(
                    q_low, q_high, k_low, k_high, values, is_key[None, :], scale, largest, total, out
                )

        # Its own tokens: a query sees those up to itself, at delta 0.
        if IS_WHOLE or split == 0:
            num_before = tl.load(num_before_ptr + sequence)
            num_keys = num_before + num_queries
            for key in range(0, num_keys, TILE):
                is_key = key + offset < num_keys
                entry = own_start + ((key + offset) >> PAGE_SHIFT)
                page = tl.load(pages_ptr + entry * 3, mask=is_key, other=0).to(tl.int64)
                base = (page * PAGE + ((key + offset) & (PAGE - 1)))[:, None] * DIM
                k_low = tl.load(k_ptr + base + half[None, :], mask=is_key[:, None], other=0.0)
                k_high = tl.load(k_ptr + base + HALF + half[None, :], mask=is_key[:, None], other=0.0)
                values = tl.load(v_ptr + base + dim[None, :], mask=is_key[:, None], other=0.0)
                is_seen = (key + offset)[None, :] <= num_before + token[:, None]
                largest, total, out = attend_to(
                    q_low, q_high, k_low, k_high, values, is_seen, scale, largest, total, out
                )

        is_some = total > 0
        out = tl.where(is_some[:, None], out / total[:, None], 0.0).to(parts_ptr.dtype.element_ty)
        if IS_WHOLE:
            tl.store(parts_ptr + at[:, None] * DIM + dim[None, :], out, mask=is_row[:, None])
        else:
            log_sum = tl.where(is_some, largest * scale + tl.log2(total), float("-inf"))
            place = split.to(tl.int64) * num_tokens * num_heads + at
            tl.store(parts_ptr + place[:, None] * DIM + dim[None, :], out, mask=(is_row & is_some)[:, None])
            tl.store(log_sums_ptr + place, log_sum, mask=is_row)


@triton.jit
def merge_kernel(
    parts_ptr,
    log_sums_ptr,
    out_ptr,
    num_rows,
    num_splits,
    SPLITS: tl.constexpr,
    DIM: tl.constexpr,
):
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


@triton.jit
def silu_mul_kernel(gate_up_ptr, out_ptr, width, COLUMNS: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    is_column = column < width
    gate = tl.load(gate_up_ptr + token * 2 * width + column, mask=is_column, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + token * 2 * width + width + column, mask=is_column, other=0.0).to(tl.float32)
    gate = gate / (1 + tl.exp(-gate))
    tl.store(out_ptr + token * width + column, (gate * up).to(out_ptr.dtype.element_ty), mask=is_column)


@triton.jit
def rms_norm_kernel(x_ptr, weight_ptr, out_ptr, eps, width, COLUMNS: tl.constexpr):
    """One row: rounded to the dtype of `x` before the weight, as transformers does it."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    is_column = column < width
    x = tl.load(x_ptr + row * width + column, mask=is_column, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, 0) / width + eps)
    weight = tl.load(weight_ptr + column, mask=is_column, other=0.0)
    normed = (x * scale).to(out_ptr.dtype.element_ty) * weight
    tl.store(out_ptr + row * width + column, normed, mask=is_column)
