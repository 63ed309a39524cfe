"""Keys and values of one block."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from npc_engine.blocks.block import BlockId


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


class KVMemory(Protocol):
    """Where the keys and values of cached blocks lie. Somebody else decides which, and whether there is room."""

    def num_bytes_for(self, num_tokens: int) -> int:
        """What a block of so many tokens takes."""
        ...

    def insert(self, block_id: BlockId, kv: BlockKV) -> None:
        """Take over a block's keys and values."""
        ...

    def get(self, block_id: BlockId) -> BlockKV:
        """A block's keys and values, which may be a copy."""
        ...

    def remove(self, block_id: BlockId) -> None:
        """Forget a block."""
        ...


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

    def num_bytes(self, num_tokens: int) -> int:
        return num_tokens * self.num_bytes_per_token

    def matches(self, kv: BlockKV, num_tokens: int) -> bool:
        """True if `kv` holds `num_tokens` tokens of this shape and dtype."""
        shape = (self.num_layers, self.num_kv_heads, num_tokens, self.head_dim)
        return kv.k.shape == kv.v.shape == shape and kv.k.dtype == kv.v.dtype == self.dtype


class SeparateKV:
    """A :class:`KVMemory` in which every block has tensors of its own."""

    def __init__(self, shape: KVShape) -> None:
        self._shape = shape
        self._kv: dict[BlockId, BlockKV] = {}

    def num_bytes_for(self, num_tokens: int) -> int:
        return self._shape.num_bytes(num_tokens)

    def insert(self, block_id: BlockId, kv: BlockKV) -> None:
        self._kv[block_id] = kv

    def get(self, block_id: BlockId) -> BlockKV:
        return self._kv[block_id]

    def remove(self, block_id: BlockId) -> None:
        del self._kv[block_id]
