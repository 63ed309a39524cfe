"""Attention of a packed batch over the contexts of its sequences."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every torch user knows
from torch import Tensor

from npc_engine.blocks.positions import rotate
from npc_engine.inference.rope import RotaryTable


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
    def position(self) -> int:
        """The position of the sequence's next token."""
        ...

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store the new tokens' keys and values, and attend to everything before and, causally, among them.

        q: [tokens, heads, head_dim]; k, v: [tokens, kv_heads, head_dim]; q and k rotated for positions from
        :attr:`position` on. Returns [tokens, heads, head_dim].
        """
        ...

    def advance(self, num_tokens: int) -> None:
        """All layers have stored these new tokens: they belong to the context now."""
        ...


class BatchAttention:
    """Attention for a packed batch.

    Sequence *i* owns ``num_tokens[i]`` consecutive rows and sees its own context only.
    """

    def __init__(self, rope: RotaryTable, contexts: Sequence[Context], num_tokens: Sequence[int]) -> None:
        self._contexts = contexts
        self._num_tokens = list(num_tokens)
        self._cos, self._sin = rope.at(
            [(context.position, context.position + n) for context, n in zip(contexts, num_tokens, strict=True)]
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


def attend(queries: Sequence[Tensor], keys: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
    """Softmax attention over segments, normalized over all of them together.

    queries[i]: [tokens, heads, head_dim], the same queries as segment *i* has to see them (rotated by its delta);
    keys[i], values[i]: [kv_heads, n_i, head_dim]. The last `tokens` columns of the last segment are the new tokens
    themselves and are masked causally. Returns [tokens, heads, head_dim].
    """
    q = queries[0]
    if all(each is q for each in queries):  # nothing has moved: one segment
        k, v = (
            (keys[0], values[0]) if len(keys) == 1 else (torch.cat(list(keys), dim=1), torch.cat(list(values), dim=1))
        )
        return _attend_to_one(q, k, v)
    num_tokens, num_heads, head_dim = q.shape
    num_kv_heads = keys[0].shape[0]
    scores = torch.cat(
        [_stack(each, num_kv_heads) @ k.transpose(1, 2) for each, k in zip(queries, keys, strict=True)], dim=-1
    )
    scores *= head_dim**-0.5
    if num_tokens > 1:
        scores[..., -num_tokens:] += _causal_mask(num_tokens, num_tokens, num_heads // num_kv_heads, q.dtype, q.device)
    parts = scores.softmax(dim=-1).split([k.shape[1] for k in keys], dim=-1)
    out = parts[0] @ values[0]
    for part, v in zip(parts[1:], values[1:], strict=True):
        out += part @ v
    return _unstack(out, num_tokens)


class ContextWeighting(NamedTuple):
    """APE (arXiv 2502.05431): attention over blocks that did not see each other is spread too evenly and sums to the
    wrong weight.

    Their scores are divided by `temperature`, and the log-sum-exp of all of them is multiplied by `scale`.
    """

    temperature: float
    scale: float


def attend_weighted(q: Tensor, keys: Tensor, values: Tensor, rows: slice, weighting: ContextWeighting) -> Tensor:
    """As :func:`attend` over one segment, with `weighting` of the keys in `rows`.

    q: [tokens, heads, head_dim]; keys, values: [kv_heads, n, head_dim]. Returns [tokens, heads, head_dim].
    """
    num_tokens, num_heads, head_dim = q.shape
    num_kv_heads, num_keys, _ = keys.shape
    scores = (_stack(q, num_kv_heads) @ keys.transpose(1, 2)).float() * head_dim**-0.5
    if num_tokens > 1:
        scores += _causal_mask(num_tokens, num_keys, num_heads // num_kv_heads, scores.dtype, q.device)
    if rows.stop > rows.start:
        context = scores[..., rows] / weighting.temperature
        total = context.logsumexp(dim=-1, keepdim=True)
        # Normalized among themselves, then weighted as one: exp(scale * total).
        scores[..., rows] = context - total + weighting.scale * total
    return _unstack(scores.softmax(dim=-1).to(values.dtype) @ values, num_tokens)


def _attend_to_one(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    # torch's fused kernel: a score matrix of its own would be written to memory, page faults included (docs/log.md).
    num_tokens, num_heads, _ = q.shape
    num_kv_heads, num_keys, _ = k.shape
    if num_tokens == num_keys and num_tokens > 1:
        out: Tensor = F.scaled_dot_product_attention(
            q.transpose(0, 1)[None], k[None], v[None], is_causal=True, enable_gqa=True
        )
        return out[0].transpose(0, 1)
    mask = None
    if num_tokens > 1:
        mask = _causal_mask(num_tokens, num_keys, num_heads // num_kv_heads, q.dtype, q.device)
    out = F.scaled_dot_product_attention(_stack(q, num_kv_heads)[None], k[None], v[None], attn_mask=mask)
    return _unstack(out[0], num_tokens)


def _stack(q: Tensor, num_kv_heads: int) -> Tensor:
    """Heads that share keys become rows of one product:

    [tokens, heads, head_dim] → [kv_heads, group * tokens, head_dim].
    """
    num_tokens, num_heads, head_dim = q.shape
    rows = q.view(num_tokens, num_kv_heads, num_heads // num_kv_heads, head_dim).permute(1, 2, 0, 3)
    return rows.reshape(num_kv_heads, -1, head_dim)


def _unstack(out: Tensor, num_tokens: int) -> Tensor:
    """[kv_heads, group * tokens, head_dim] → [tokens, heads, head_dim]."""
    num_kv_heads, _, head_dim = out.shape
    return out.view(num_kv_heads, -1, num_tokens, head_dim).permute(2, 0, 1, 3).reshape(num_tokens, -1, head_dim)


@lru_cache(maxsize=16)  # one mask serves every layer of a pass
def _causal_mask(num_tokens: int, num_keys: int, group: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What to add to stacked scores so that the last `num_tokens` keys are causal: [group * num_tokens, num_keys]."""
    mask = torch.zeros(num_tokens, num_keys, dtype=dtype, device=device)
    future = torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=device).triu(1)
    mask[:, num_keys - num_tokens :].masked_fill_(future, float("-inf"))
    return mask.repeat(group, 1)
