"""Small operations in one pass over memory: Triton's kernels on a GPU that has them, torch's operations elsewhere."""

from __future__ import annotations

from functools import cache
from types import ModuleType

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every torch user knows
from torch import Tensor


def silu_mul(gate_up: Tensor) -> Tensor:
    """``silu(gate) * up``. gate_up: [tokens, 2 * n], gate first. Returns [tokens, n]."""
    kernels = _kernels() if gate_up.is_cuda else None
    if kernels is not None:
        fused: Tensor = kernels.silu_mul(gate_up)
        return fused
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last dimension. x: [..., n]; weight: [n]."""
    kernels = _kernels() if x.is_cuda else None
    if kernels is not None:
        fused: Tensor = kernels.rms_norm(x.contiguous(), weight, eps)
        return fused
    return F.rms_norm(x, weight.shape, weight, eps)


@cache
def _kernels() -> ModuleType | None:
    """None where Triton is missing, or can't compile: that needs a C compiler, and a GPU that it knows."""
    try:
        from npc_engine.inference import triton_attention

        triton_attention.silu_mul(torch.zeros(1, 2, device="cuda"))
    except Exception:
        return None
    return triton_attention
