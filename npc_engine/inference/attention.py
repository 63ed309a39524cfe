"""Attention of a packed batch over the contexts of its sequences."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every torch user knows
from torch import Tensor

from npc_engine.blocks.positions import rotate
from npc_engine.inference.rope import RotaryTable

# From this many tokens on, a prompt without context goes through torch's fused kernel: the score matrix would not fit
# in the cache. Below, plain matrix products are faster on a CPU (0.96 against 1.9 ms a layer for 50 tokens over 2,000).
_MIN_TOKENS_FUSED = 64


class Attention(Protocol):
    """What the decoder calls in every layer."""

    def __call__(self, layer: int, qk: Tensor, v: Tensor) -> Tensor:
        """qk: [tokens, heads + kv_heads, head_dim], queries then keys, not rotated; v: [tokens, kv_heads, head_dim].

        Returns [tokens, heads, head_dim].
        """
        ...


class Context(Protocol):
    """Keys and values that one sequence has so far, and the place where its next ones go."""

    @property
    def num_tokens(self) -> int:
        """The position of the sequence's next token."""
        ...

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store the new tokens' keys and values, and attend to everything before and, causally, among them.

        q: [tokens, heads, head_dim]; k, v: [tokens, kv_heads, head_dim]; q and k rotated for positions from
        :attr:`num_tokens` on. Returns [tokens, heads, head_dim].
        """
        ...

    def advance(self, num_tokens: int) -> None:
        """All layers have stored these new tokens: they belong to the context now."""
        ...


class BatchAttention:
    """Attention for a packed batch:

    sequence *i* owns ``num_tokens[i]`` consecutive rows and sees its own context only.
    """

    def __init__(self, rope: RotaryTable, contexts: Sequence[Context], num_tokens: Sequence[int]) -> None:
        self._contexts = contexts
        self._num_tokens = list(num_tokens)
        self._cos, self._sin = rope.at(
            [(context.num_tokens, context.num_tokens + n) for context, n in zip(contexts, num_tokens, strict=True)]
        )

    def __call__(self, layer: int, qk: Tensor, v: Tensor) -> Tensor:
        num_kv_heads = v.shape[1]
        q, k = rotate(qk, self._cos, self._sin).split([qk.shape[1] - num_kv_heads, num_kv_heads], dim=1)
        if len(self._contexts) == 1:
            return self._contexts[0].attend(layer, q, k, v)
        rows = zip(
            self._contexts, q.split(self._num_tokens), k.split(self._num_tokens), v.split(self._num_tokens), strict=True
        )
        return torch.cat([context.attend(layer, *qkv) for context, *qkv in rows])

    def advance(self) -> None:
        """Call after the last layer."""
        for context, num_tokens in zip(self._contexts, self._num_tokens, strict=True):
            context.advance(num_tokens)


def attend(queries: Sequence[Tensor], keys: Sequence[Tensor], values: Sequence[Tensor], num_unused: int = 0) -> Tensor:
    """Softmax attention over segments, normalized over all of them together.

    queries[i]: [tokens, heads, head_dim], the same queries as segment *i* has to see them (rotated by its delta);
    keys[i], values[i]: [kv_heads, n_i, head_dim]. In the last segment, the last `num_unused` columns are room that
    holds finite numbers and nothing else, and the `tokens` columns before them are the new tokens themselves, masked
    causally. Returns [tokens, heads, head_dim].
    """
    num_tokens, num_heads, head_dim = queries[0].shape
    num_kv_heads, num_last = keys[-1].shape[:2]
    end = num_last - num_unused
    if len(keys) == 1 and end == num_tokens >= _MIN_TOKENS_FUSED:
        k, v = keys[0][None, :, :end], values[0][None, :, :end]
        out: Tensor = F.scaled_dot_product_attention(
            queries[0].transpose(0, 1)[None], k, v, is_causal=True, enable_gqa=True
        )
        return out[0].transpose(0, 1)
    # Heads that share keys are stacked into the rows of one product: [kv_heads, group * tokens, n].
    group = num_heads // num_kv_heads
    stacked = [_stack(q, num_kv_heads, group) * head_dim**-0.5 for q in queries]
    scores = [q @ k.transpose(1, 2) for q, k in zip(stacked, keys, strict=True)]
    own = scores[-1].view(num_kv_heads, group, num_tokens, num_last)
    own[..., end:] = float("-inf")
    if num_tokens > 1:
        own[..., end - num_tokens : end].masked_fill_(_above_diagonal(num_tokens, own.device), float("-inf"))
    probabilities = torch.cat(scores, dim=-1).softmax(dim=-1) if len(scores) > 1 else scores[0].softmax(dim=-1)
    parts = probabilities.split([k.shape[1] for k in keys], dim=-1)
    out = parts[0] @ values[0]
    for part, v in zip(parts[1:], values[1:], strict=True):
        out += part @ v
    out = out.view(num_kv_heads, group, num_tokens, head_dim).permute(2, 0, 1, 3)
    return out.reshape(num_tokens, num_heads, head_dim)


def _stack(q: Tensor, num_kv_heads: int, group: int) -> Tensor:
    num_tokens, _, head_dim = q.shape
    rows = q.view(num_tokens, num_kv_heads, group, head_dim).permute(1, 2, 0, 3)
    return rows.reshape(num_kv_heads, group * num_tokens, head_dim)


@lru_cache(maxsize=16)  # one mask serves every layer of a pass
def _above_diagonal(num_tokens: int, device: torch.device) -> Tensor:
    return torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=device).triu(1)
