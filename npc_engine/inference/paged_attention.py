"""Attention over pages: the queries of a packed batch against blocks where they are cached, whatever their positions.

Cached tokens lie in *runs*: a block, or a part of one, in pages of its own. A run has a *delta*: how far its keys would
have to move to lie where the layout has them. Nothing is moved; a backend rotates queries (or keys) by it while it
attends. The tokens that a sequence computes itself lie in further pages, at delta 0.
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
RUN: Final = 2
"""Numbers of a run in a table: the index of its first page, how many tokens it has."""
PAGE: Final = 3
"""Numbers of a page in a table: which page, its delta, how many of its tokens count."""
_MAX_RUN_TOKENS: Final = 256  # longer blocks are several runs, so that the work can be shared out evenly


class CachedPages(NamedTuple):
    """What a sequence sees of the cache. `pages`: [pages, PAGE]; `runs`: [runs, RUN], which index `pages`."""

    pages: Ints
    runs: Ints

    @classmethod
    def of(cls, pages: Sequence[int], delta: int, num_tokens: int, page_tokens: int) -> CachedPages:
        """One block."""
        longest = _MAX_RUN_TOKENS // page_tokens * page_tokens
        runs = [(start // page_tokens, min(longest, num_tokens - start)) for start in range(0, num_tokens, longest)]
        table = [(page, delta, min(page_tokens, num_tokens - i * page_tokens)) for i, page in enumerate(pages)]
        return cls(np.array(table, dtype=np.int32).reshape(-1, PAGE), np.array(runs, dtype=np.int32).reshape(-1, RUN))

    @classmethod
    def joined(cls, parts: Sequence[CachedPages]) -> CachedPages:
        """These, one behind the other."""
        if not parts:
            return cls(np.empty((0, PAGE), dtype=np.int32), np.empty((0, RUN), dtype=np.int32))
        runs = np.concatenate([part.runs for part in parts])
        firsts = np.cumsum([0, *(len(part.pages) for part in parts[:-1])], dtype=np.int32)
        runs[:, 0] += np.repeat(firsts, [len(part.runs) for part in parts])
        return cls(np.concatenate([part.pages for part in parts]), runs)

    def up_to(self, num_pages: int, num_runs: int) -> CachedPages:
        """The first of these pages and runs."""
        return CachedPages(self.pages[:num_pages], self.runs[:num_runs])


@dataclass(frozen=True, slots=True)
class SequencePages:
    """The pages of one sequence: what is cached, and its own.

    `own`: pages for new tokens, which hold `num_before` of them already; `position` is that of the next token.
    """

    cached: CachedPages
    own: Ints
    num_before: int
    position: int


class StepShape(NamedTuple):
    """How much a step has room for; no sequence has more than `max_queries` tokens."""

    num_tokens: int
    num_sequences: int
    num_runs: int
    num_pages: int
    max_queries: int


@dataclass(frozen=True, slots=True)
class PagedStep:
    """One pass over a packed batch, as the device is told of it: views of one tensor of int32.

    - `token_ids`, `positions`, `rows` (of the paged memory, where keys and values go): [tokens]
    - `query_starts`: [sequences + 1], the first token of each sequence; tokens behind the last one fill up
    - `run_starts`: [sequences + 1], the first run of each sequence in `runs`: [runs, RUN], which index `pages`
    - `page_starts`, `own_starts`: [sequences], where a sequence's cached pages, and behind them its own, begin in
      `pages`: [pages, PAGE]
    - `num_before`, `last_tokens`: [sequences]
    """

    shape: StepShape
    page_tokens: int
    token_ids: Tensor
    positions: Tensor
    rows: Tensor
    query_starts: Tensor
    run_starts: Tensor
    page_starts: Tensor
    own_starts: Tensor
    num_before: Tensor
    last_tokens: Tensor
    runs: Tensor
    pages: Tensor

    @classmethod
    def over(cls, numbers: Tensor, shape: StepShape, page_tokens: int) -> PagedStep:
        """Over this tensor, which has room for `shape`."""
        token_ids, positions, rows, *per_sequence, runs, pages = numbers[: _size(shape)].split(_sizes(shape))
        query_starts, run_starts, page_starts, own_starts, num_before, last_tokens = per_sequence
        return cls(
            shape,
            page_tokens,
            token_ids,
            positions,
            rows,
            query_starts,
            run_starts,
            page_starts,
            own_starts,
            num_before,
            last_tokens,
            runs.view(-1, RUN),
            pages.view(-1, PAGE),
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
        num_runs=sum(len(sequence.cached.runs) for sequence in sequences),
        num_pages=sum(len(sequence.cached.pages) + len(sequence.own) for sequence in sequences),
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
    """The numbers of a :class:`PagedStep`, as far as there is something behind them.

    What fills up tokens is stored at `spare_row` and belongs to no sequence.
    """
    num_pages = sum(len(sequence.cached.pages) + len(sequence.own) for sequence in sequences)
    numbers = np.zeros(_size(shape._replace(num_pages=num_pages)), dtype=np.int32)
    ids, positions, rows, query_starts, run_starts, page_starts, own_starts, num_before, last, *tables = np.split(
        numbers, np.cumsum(_sizes(shape)[:-1])
    )
    runs, pages = tables[0].reshape(-1, RUN), tables[1].reshape(-1, PAGE)
    rows[:] = spare_row
    token = run = page = 0
    for i, (sequence, new) in enumerate(zip(sequences, token_ids, strict=True)):
        cached, own = sequence.cached, sequence.own
        end = token + len(new)
        ids[token:end] = new
        positions[token:end] = np.arange(sequence.position, sequence.position + len(new))
        offsets = np.arange(sequence.num_before, sequence.num_before + len(new))
        rows[token:end] = own[offsets // page_tokens] * page_tokens + offsets % page_tokens
        runs[run : run + len(cached.runs)] = cached.runs
        runs[run : run + len(cached.runs), 0] += page
        page_starts[i], own_starts[i] = page, page + len(cached.pages)
        num_before[i], last[i] = sequence.num_before, end - 1
        pages[page : own_starts[i]] = cached.pages
        pages[own_starts[i] : own_starts[i] + len(own), 0] = own
        token, run, page = end, run + len(cached.runs), own_starts[i] + len(own)
        query_starts[i + 1], run_starts[i + 1] = token, run
    query_starts[len(sequences) + 1 :], run_starts[len(sequences) + 1 :] = token, run
    return numbers


def _sizes(shape: StepShape) -> list[int]:
    tokens, sequences, runs, pages, _ = shape
    return [*[tokens] * 3, *[sequences + 1] * 2, *[sequences] * 4, RUN * runs, PAGE * pages]


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
    """torch operations alone, sequence by sequence, run by run: for any device, and what the others are held to."""

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
        first, end = step.run_starts[index : index + 2].tolist()
        size = step.page_tokens
        own = int(step.own_starts[index])
        new = (own, int(step.num_before[index]) + q.shape[0])
        keys, values = [], []
        for page, num_tokens in (*step.runs[first:end].tolist(), new):
            offset = torch.arange(num_tokens, device=q.device)
            rows = step.pages[page + offset // size, 0] * size + offset % size
            delta = 0 if page == own else int(step.pages[page, 1])
            keys.append(shift(k[:, rows], delta, self._rope.inv_freq))
            values.append(v[:, rows])
        num_queries = q.shape[0]
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
