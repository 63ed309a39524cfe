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


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs of the last dimension. x: [..., head_dim]; cos, sin: broadcastable to [..., head_dim / 2], float32.

    Computed in float32, returned in the dtype of `x`.
    """
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def shift(x: Tensor, delta: int, inv_freq: Tensor) -> Tensor:
    """Move keys or queries by `delta` positions.

    x: [..., head_dim]; inv_freq: [head_dim / 2]. Returns `x` for delta 0.
    """
    if delta == 0:
        return x
    angles = inv_freq.double() * delta  # float32 loses the angle of far moves at high frequencies
    return rotate(x, angles.cos().float(), angles.sin().float())
