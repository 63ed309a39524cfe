"""Keys and values of one block."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class BlockKV(NamedTuple):
    """Keys and values of a block in every layer.

    `k`, `v`: [layers, kv_heads, tokens, head_dim]. Keys are rotated for the local positions they were computed at
    (``Block.start`` onwards), values are not rotated.
    """

    k: Tensor
    v: Tensor

    @property
    def num_tokens(self) -> int:
        return self.k.shape[2]

    @property
    def num_bytes(self) -> int:
        return self.k.nbytes + self.v.nbytes


class KVShape(NamedTuple):
    """The shape of any block's keys (and values), its number of tokens aside."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype

    @property
    def num_bytes_per_token(self) -> int:
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * self.dtype.itemsize

    def empty(self, num_tokens: int, device: torch.device | str) -> BlockKV:
        """Uninitialized keys and values."""
        shape = (self.num_layers, self.num_kv_heads, num_tokens, self.head_dim)
        return BlockKV(
            torch.empty(shape, dtype=self.dtype, device=device), torch.empty(shape, dtype=self.dtype, device=device)
        )

    def matches(self, kv: BlockKV, num_tokens: int) -> bool:
        """True if `kv` holds `num_tokens` tokens of this shape and dtype."""
        shape = (self.num_layers, self.num_kv_heads, num_tokens, self.head_dim)
        return kv.k.shape == kv.v.shape == shape and kv.k.dtype == kv.v.dtype == self.dtype
