"""Attention over pages in fused kernels (Triton), split over the keys and merged by log-sum-exp.

Tall and thin is the case that counts: 1 to 64 new tokens against tens of thousands of cached ones. So the grid is cut
along the keys until the device is full, and heads that share keys share one read of them. Grids depend on a step's
shape alone, so that a CUDA graph of a step serves any layout.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
import triton
from torch import Tensor

from npc_engine.inference import triton_kernels as kernels
from npc_engine.inference.paged_attention import PagedStep
from npc_engine.inference.rope import RotaryTable

_LOG2_E: Final = 1.4426950408889634  # exp2 is what the hardware has


class Tuning(NamedTuple):
    """How the kernel is cut, by the most rows (queries times the heads that share keys) of a sequence.

    `turns_queries`: queries are turned by the delta of a run, `num_keys` at a time; otherwise keys are moved, page by
    page.
    """

    num_rows: int  # of one program
    turns_queries: bool
    num_keys: int
    num_warps: int
    num_stages: int
    programs_per_processor: int


def tuning_for(num_rows: int, dtype: torch.dtype, page_tokens: int) -> Tuning:
    """What measured best on an H200 (docs/log.md)."""
    if dtype is torch.float32:  # no matrix units: larger ones take long to compile
        return Tuning(16, True, 32, 4, 2, 4)
    if num_rows <= 16:
        return Tuning(16, True, 64, 2, 3, 2)
    if num_rows <= 64:
        return Tuning(64, False, page_tokens, 4, 2, 2)
    return Tuning(128, False, page_tokens, 4, 2, 2)


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
        kernels.rotate_and_store_kernel[(num_tokens, num_qk_heads + num_kv_heads)](
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
        tuning = self._tuning or tuning_for(most_rows, q.dtype, step.page_tokens)
        num_tiles = triton.cdiv(most_rows, tuning.num_rows)
        num_programs = step.shape.num_sequences * num_tiles * num_kv_heads
        splits = self._num_splits(tuning, num_programs)
        out = torch.empty_like(q)
        parts = torch.empty(
            splits if splits > 1 else 0, num_tokens, num_heads, head_dim, dtype=q.dtype, device=q.device
        )
        log_sums = torch.empty(splits, num_tokens, num_heads, dtype=torch.float32, device=q.device)
        kernels.attend_part_kernel[(step.shape.num_sequences * num_tiles, num_kv_heads, splits)](
            q,
            keys,
            values,
            parts if splits > 1 else out,
            log_sums,
            step.query_starts,
            step.run_starts,
            step.runs,
            step.page_starts,
            step.own_starts,
            step.pages,
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
            PAGE_SHIFT=step.page_tokens.bit_length() - 1,
            ROWS=tuning.num_rows,
            TILE=tuning.num_keys,
            TURNS_QUERIES=tuning.turns_queries,
            IS_WHOLE=splits == 1,
            num_warps=tuning.num_warps,
            num_stages=tuning.num_stages,
        )
        if splits > 1:
            kernels.merge_kernel[(num_tokens * num_heads,)](
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
        """One for a sequence's own tokens, the others for what is cached."""
        return max(1, min(tuning.programs_per_processor * self._num_processors // num_programs, self._max_splits))


def silu_mul(gate_up: Tensor) -> Tensor:
    """``silu(gate) * up`` of [tokens, 2 * n], gate first, in one pass. Returns [tokens, n]."""
    num_tokens, width = gate_up.shape
    out = torch.empty(num_tokens, width // 2, dtype=gate_up.dtype, device=gate_up.device)
    kernels.silu_mul_kernel[(num_tokens, triton.cdiv(width // 2, 1024))](
        gate_up, out, width // 2, COLUMNS=1024, num_warps=4
    )
    return out


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last dimension, in one pass. x: [..., n], contiguous; weight: [n]."""
    out = torch.empty_like(x)
    width = x.shape[-1]
    kernels.rms_norm_kernel[(x.numel() // width,)](
        x, weight, out, eps, width, COLUMNS=triton.next_power_of_2(width), num_warps=8 if width > 2048 else 4
    )
    return out
