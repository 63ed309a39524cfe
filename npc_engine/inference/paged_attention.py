"""Attention over pages: the queries of a packed batch against blocks where they are cached, whatever their positions.

A page has a *delta*: how far its keys would have to move to lie where its layout has them. Nothing is moved; a backend
rotates keys (or queries) by it while it attends. The tokens that a sequence computes itself lie in its last pages, at
delta 0.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name that every torch user knows
from numpy.typing import NDArray
from torch import Tensor

from npc_engine.blocks.pages import PagedKV
from npc_engine.blocks.positions import rotate, shift
from npc_engine.inference.rope import RotaryTable

Ints = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class SequencePages:
    """The pages of one sequence, in the order of its layout: what is cached, then its own.

    `pages`, `deltas`, `num_valid` (tokens that count): [cached pages]; `own`: pages for new tokens, which hold
    `num_before` of them already.
    """

    pages: Ints
    deltas: Ints
    num_valid: Ints
    own: Ints
    num_before: int


@dataclass(frozen=True, slots=True)
class PagedBatch:
    """What a backend is told of a packed batch; all int32, on the device.

    - `query_starts`: [sequences + 1], the first row of each sequence's queries
    - `pages`, `deltas`, `num_valid`: [sequences, pages], filled up with zeros
    - `num_pages`, `num_cached` (pages in front of a sequence's own), `num_before`: [sequences]
    """

    query_starts: Tensor
    pages: Tensor
    deltas: Tensor
    num_valid: Tensor
    num_pages: Tensor
    num_cached: Tensor
    num_before: Tensor
    max_queries: int
    page_tokens: int

    @classmethod
    def of(
        cls, sequences: Sequence[SequencePages], num_queries: Sequence[int], page_tokens: int, device: torch.device
    ) -> PagedBatch:
        """num_queries: of each sequence, whose own pages have room for them."""
        number = len(sequences)
        cached = [len(sequence.pages) for sequence in sequences]
        width = max(n + len(sequence.own) for n, sequence in zip(cached, sequences, strict=True))
        tables = np.zeros((3, number, width), dtype=np.int32)
        for i, (sequence, n) in enumerate(zip(sequences, cached, strict=True)):
            end = n + len(sequence.own)
            tables[0, i, :n], tables[0, i, n:end] = sequence.pages, sequence.own
            tables[1, i, :n] = sequence.deltas
            tables[2, i, :n], tables[2, i, n:end] = sequence.num_valid, page_tokens
        starts = np.concatenate(([0], np.cumsum(num_queries)))
        counts = [[n + len(s.own) for n, s in zip(cached, sequences, strict=True)], cached]
        per_sequence = np.array([*counts, [sequence.num_before for sequence in sequences]], dtype=np.int32)
        # One transfer for all of it.
        packed = np.concatenate((tables.ravel(), per_sequence.ravel(), starts.astype(np.int32)))
        moved = torch.from_numpy(packed).to(device, non_blocking=True)
        of_pages, of_sequences, query_starts = moved.split([tables.size, per_sequence.size, starts.size])
        pages, deltas, num_valid = of_pages.view(3, number, width)
        num_pages, num_cached, num_before = of_sequences.view(3, number)
        return cls(
            query_starts,
            pages,
            deltas,
            num_valid,
            num_pages,
            num_cached,
            num_before,
            max_queries=max(num_queries),
            page_tokens=page_tokens,
        )


class PagedBackend(Protocol):
    """One implementation of attention over pages."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, batch: PagedBatch) -> Tensor:
        """q: [tokens, heads, head_dim], rotated for the positions of its tokens; k, v: one layer of a
        :class:`~npc_engine.blocks.pages.PagedKV`, the new tokens' keys and values in place.

        Returns [tokens, heads, head_dim].
        """
        ...


class ReferenceBackend:
    """torch operations alone, sequence by sequence, page by page: for any device, and what the others are held to."""

    def __init__(self, inv_freq: Tensor) -> None:
        self._inv_freq = inv_freq

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, batch: PagedBatch) -> Tensor:
        starts = batch.query_starts.tolist()
        outputs = [
            self._attend(q[start:end], k, v, batch, i) for i, (start, end) in enumerate(itertools.pairwise(starts))
        ]
        return torch.cat(outputs)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, batch: PagedBatch, index: int) -> Tensor:
        num_pages, num_cached, num_before = (
            int(each[index]) for each in (batch.num_pages, batch.num_cached, batch.num_before)
        )
        num_queries, size = q.shape[0], batch.page_tokens
        keys, values = [], []
        num_new = num_before + num_queries
        for i in range(num_pages):
            page, delta, num_valid = (int(each[index, i]) for each in (batch.pages, batch.deltas, batch.num_valid))
            if i >= num_cached:
                num_valid = max(0, min(size, num_new - (i - num_cached) * size))
            rows = slice(page * size, page * size + num_valid)
            keys.append(shift(k[:, rows], delta, self._inv_freq))
            values.append(v[:, rows])
        num_keys = sum(each.shape[1] for each in keys)
        mask = torch.ones(num_queries, num_keys, dtype=torch.bool, device=q.device).tril(num_keys - num_queries)
        out = F.scaled_dot_product_attention(
            q.transpose(0, 1)[None],
            torch.cat(keys, 1)[None],
            torch.cat(values, 1)[None],
            attn_mask=mask,
            enable_gqa=True,
        )
        return out[0].transpose(0, 1)


class PagedContext(Protocol):
    """What attention over pages needs of a conversation's context."""

    @property
    def position(self) -> int:
        """The position of the sequence's next token."""
        ...

    def reserve(self, num_tokens: int) -> Tensor:
        """Where the next tokens go: rows of the paged memory, [tokens]."""
        ...

    def sequence_pages(self) -> SequencePages:
        """Everything the next tokens see, and the pages they go to."""
        ...

    def advance(self, num_tokens: int) -> None:
        """All layers have stored these new tokens."""
        ...


class PagedAttention:
    """Attention for a packed batch over pages; sequence *i* owns ``num_tokens[i]`` consecutive rows.

    An :class:`~npc_engine.inference.attention.Attention`.
    """

    def __init__(
        self,
        rope: RotaryTable,
        memory: PagedKV,
        backend: PagedBackend,
        contexts: Sequence[PagedContext],
        num_tokens: Sequence[int],
    ) -> None:
        self._memory = memory
        self._backend = backend
        self._contexts = contexts
        self._num_tokens = list(num_tokens)
        pairs = list(zip(contexts, num_tokens, strict=True))
        self._cos, self._sin = rope.at([(context.position, context.position + n) for context, n in pairs])
        self._rows = torch.cat([context.reserve(n) for context, n in pairs])
        sequences = [context.sequence_pages() for context in contexts]
        self._batch = PagedBatch.of(sequences, self._num_tokens, memory.page_tokens, memory.k.device)

    def __call__(self, layer: int, qk: Tensor, v: Tensor) -> Tensor:
        num_kv_heads = v.shape[1]
        q, k = rotate(qk, self._cos, self._sin).split([qk.shape[1] - num_kv_heads, num_kv_heads], dim=1)
        keys, values = self._memory.k[layer], self._memory.v[layer]
        keys[:, self._rows] = k.transpose(0, 1)
        values[:, self._rows] = v.transpose(0, 1)
        return self._backend(q, keys, values, self._batch)

    def advance(self) -> None:
        """Call after the last layer."""
        for context, num_tokens in zip(self._contexts, self._num_tokens, strict=True):
            context.advance(num_tokens)
