"""Position re-encoding: moving cached keys, or turning queries, from one position to another.

RoPE rotates pair *i* of a head's dimensions by ``position * inv_freq[i]``. Rotations add up, so a key that was rotated
for position *p* is moved to *p + delta* by rotating it by *delta* once more (Block-Attention, section 2.3), and a query
meets keys that stayed behind when it is rotated by *-delta*. Neither touches what YaRN multiplies into the tables (its
attention scaling is in the cached keys already), so it is never applied twice.

Dimensions are paired as Hugging Face does: *i* with *i + head_dim / 2*.
"""

from __future__ import annotations

import torch
from torch import Tensor


def tables(angles: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin as :func:`rotate` takes them. angles: [..., head_dim / 2] → each [..., head_dim], float32."""
    cos, sin = angles.cos().float(), angles.sin().float()
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs of the last dimension. x: [..., head_dim]; cos, sin: from :func:`tables`, broadcastable to `x`.

    Computed in float32, returned in the dtype of `x`.
    """
    partners = x.roll(x.shape[-1] // 2, dims=-1).float()
    return torch.addcmul(x * cos, partners, sin).to(x.dtype)


def shift(x: Tensor, delta: int, inv_freq: Tensor) -> Tensor:
    """Move keys or queries by `delta` positions. x: [..., head_dim]; inv_freq: [head_dim / 2]. Returns `x` for 0."""
    if delta == 0:
        return x
    # In float64: float32 loses the angle of far moves at high frequencies.
    return rotate(x, *tables(inv_freq.double() * delta))
