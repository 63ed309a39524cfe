"""Attention over pages: the queries of a packed batch against blocks where they are cached, whatever their positions.

A page has a *delta*: how far its keys would have to move to lie where its layout has them. Nothing is moved; a backend
rotates keys (or queries) by it while it attends. The tokens that a sequence computes itself lie in its last pages, at
delta 0.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name that every torch user knows
from numpy.typing import NDArray
from torch import Tensor

from npc_engine.blocks.pages import PagedKV
from npc_engine.blocks.positions import rotate, shift
from npc_engine.inference.rope import RotaryTable

Ints = NDArray[np.int32]
ENTRY: Final = 3
"""Numbers of a page in a table: the page, its delta, how many of its tokens count."""


@dataclass(frozen=True, slots=True)
class SequencePages:
    """The pages of one sequence, in the order of its layout: what is cached, then its own.

    `cached`: [pages, ENTRY]; `own`: pages for new tokens, which hold `num_before` of them already; `position` is that
    of the next token.
    """

    cached: Ints
    own: Ints
    num_before: int
    position: int


class StepShape(NamedTuple):
    """How many tokens, sequences and pages a step has room for; no sequence has more than `max_queries` tokens."""

    num_tokens: int
    num_sequences: int
    num_entries: int
    max_queries: int


@dataclass(frozen=True, slots=True)
class PagedStep:
    """One pass over a packed batch, as the device is told of it: views of one tensor of int32.

    - `token_ids`, `positions`, `rows` (of the paged memory, where keys and values go): [tokens]
    - `query_starts`: [sequences + 1], the first token of each sequence; tokens behind the last one fill up
    - `entry_starts`: [sequences + 1], the first page of each sequence in `entries`: [pages, ENTRY]
    - `num_cached` (pages in front of a sequence's own), `num_before`, `last_tokens`: [sequences]
    """

    shape: StepShape
    page_tokens: int
    token_ids: Tensor
    positions: Tensor
    rows: Tensor
    query_starts: Tensor
    entry_starts: Tensor
    num_cached: Tensor
    num_before: Tensor
    last_tokens: Tensor
    entries: Tensor

    @classmethod
    def over(cls, numbers: Tensor, shape: StepShape, page_tokens: int) -> PagedStep:
        """Over this tensor, which has room for `shape`."""
        token_ids, positions, rows, *per_sequence, entries = numbers[: _size(shape)].split(_sizes(shape))
        query_starts, entry_starts, num_cached, num_before, last_tokens = per_sequence
        return cls(
            shape,
            page_tokens,
            token_ids,
            positions,
            rows,
            query_starts,
            entry_starts,
            num_cached,
            num_before,
            last_tokens,
            entries.view(-1, ENTRY),
        )

    @classmethod
    def of(
        cls,
        sequences: Sequence[SequencePages],
        token_ids: Sequence[Sequence[int]],
        page_tokens: int,
        device: torch.device,
    ) -> PagedStep:
        """Of exactly these sequences, whose own pages have room for their tokens."""
        shape = shape_of(sequences, token_ids)
        numbers = torch.from_numpy(pack(sequences, token_ids, shape, page_tokens, spare_row=0))
        return cls.over(numbers.to(device, non_blocking=True), shape, page_tokens)


def shape_of(sequences: Sequence[SequencePages], token_ids: Sequence[Sequence[int]]) -> StepShape:
    """The least that has room for these."""
    return StepShape(
        num_tokens=sum(len(ids) for ids in token_ids),
        num_sequences=len(sequences),
        num_entries=sum(len(sequence.cached) + len(sequence.own) for sequence in sequences),
        max_queries=max(len(ids) for ids in token_ids),
    )


def pack(
    sequences: Sequence[SequencePages],
    token_ids: Sequence[Sequence[int]],
    shape: StepShape,
    page_tokens: int,
    *,
    spare_row: int,
) -> Ints:
    """The numbers of a :class:`PagedStep`. What fills up is stored at `spare_row` and belongs to no sequence."""
    num_entries = sum(len(sequence.cached) + len(sequence.own) for sequence in sequences)
    numbers = np.zeros(_size(shape._replace(num_entries=num_entries)), dtype=np.int32)
    ids, positions, rows, query_starts, entry_starts, num_cached, num_before, last, entries = np.split(
        numbers, np.cumsum(_sizes(shape)[:-1])
    )
    table = entries.reshape(-1, ENTRY)
    rows[:] = spare_row
    token = entry = 0
    for i, (sequence, new) in enumerate(zip(sequences, token_ids, strict=True)):
        end, cached, own = token + len(new), len(sequence.cached), len(sequence.own)
        ids[token:end] = new
        positions[token:end] = np.arange(sequence.position, sequence.position + len(new))
        offsets = np.arange(sequence.num_before, sequence.num_before + len(new))
        rows[token:end] = sequence.own[offsets // page_tokens] * page_tokens + offsets % page_tokens
        table[entry : entry + cached] = sequence.cached
        table[entry + cached : entry + cached + own, 0] = sequence.own
        num_cached[i], num_before[i], last[i] = cached, sequence.num_before, end - 1
        token, entry = end, entry + cached + own
        query_starts[i + 1], entry_starts[i + 1] = token, entry
    query_starts[len(sequences) + 1 :], entry_starts[len(sequences) + 1 :] = token, entry
    return numbers


def _sizes(shape: StepShape) -> list[int]:
    tokens, sequences, entries, _ = shape
    return [*[tokens] * 3, *[sequences + 1] * 2, *[sequences] * 3, ENTRY * entries]


def _size(shape: StepShape) -> int:
    return sum(_sizes(shape))


class PagedBackend(Protocol):
    """One implementation of attention over pages."""

    def store(self, qk: Tensor, v: Tensor, keys: Tensor, values: Tensor, step: PagedStep) -> Tensor:
        """Rotate queries and keys for their positions, and put keys and values into their rows.

        qk: [tokens, heads + kv_heads, head_dim]; v: [tokens, kv_heads, head_dim]; keys, values: one layer of a
        :class:`~npc_engine.blocks.pages.PagedKV`. Returns the queries, [tokens, heads, head_dim].
        """
        ...

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, step: PagedStep) -> Tensor:
        """q: [tokens, heads, head_dim], as :meth:`store` returned them. Returns the same shape."""
        ...


class ReferenceBackend:
    """torch operations alone, sequence by sequence, page by page: for any device, and what the others are held to."""

    def __init__(self, rope: RotaryTable) -> None:
        self._rope = rope

    def store(self, qk: Tensor, v: Tensor, keys: Tensor, values: Tensor, step: PagedStep) -> Tensor:
        num_kv_heads = v.shape[1]
        cos, sin = self._rope.of(step.positions)
        rotated = rotate(qk, cos, sin)
        q, k = rotated[:, :-num_kv_heads], rotated[:, -num_kv_heads:]
        keys[:, step.rows.long()] = k.transpose(0, 1)
        values[:, step.rows.long()] = v.transpose(0, 1)
        return q

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, step: PagedStep) -> Tensor:
        starts = step.query_starts.tolist()
        outputs = [
            self._attend_one(q[start:end], keys, values, step, i)
            for i, (start, end) in enumerate(itertools.pairwise(starts))
        ]
        return torch.cat([*outputs, torch.zeros_like(q[starts[-1] :])])

    def _attend_one(self, q: Tensor, k: Tensor, v: Tensor, step: PagedStep, index: int) -> Tensor:
        first, end = step.entry_starts[index : index + 2].tolist()
        num_cached, num_before = int(step.num_cached[index]), int(step.num_before[index])
        num_queries, size = q.shape[0], step.page_tokens
        keys, values = [], []
        num_new = num_before + num_queries
        for i, (page, delta, num_valid) in enumerate(step.entries[first:end].tolist()):
            if i >= num_cached:
                num_valid = max(0, min(size, num_new - (i - num_cached) * size))
            rows = slice(page * size, page * size + num_valid)
            keys.append(shift(k[:, rows], delta, self._rope.inv_freq))
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


class PagedAttention:
    """Attention for one step over pages. An :class:`~npc_engine.inference.attention.Attention`."""

    def __init__(self, memory: PagedKV, backend: PagedBackend, step: PagedStep) -> None:
        self._memory = memory
        self._backend = backend
        self._step = step

    def __call__(self, layer: int, qk: Tensor, v: Tensor) -> Tensor:
        keys, values = self._memory.k[layer], self._memory.v[layer]
        q = self._backend.store(qk, v, keys, values, self._step)
        return self._backend.attend(q, keys, values, self._step)
