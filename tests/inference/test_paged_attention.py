"""Attention over pages: the same as moving every key in float64, for any batch, on every backend that runs here."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from npc_engine.blocks import BlockKV, KVShape
from npc_engine.blocks.pages import PagedKV, PagePool
from npc_engine.blocks.positions import shift
from npc_engine.errors import BlockMemoryError
from npc_engine.inference.paged_attention import PagedBackend, PagedBatch, ReferenceBackend, SequencePages

CPU = torch.device("cpu")
INV_FREQ = 1.0 / 10_000 ** (torch.arange(0, 32, 2) / 32)


@dataclass(frozen=True)
class Wanted:
    """A sequence to be attended: cached blocks as (tokens, delta), own tokens that are there, and its queries."""

    blocks: tuple[tuple[int, int], ...]
    num_before: int
    num_queries: int


def run(
    backend: PagedBackend, wanted: list[Wanted], *, page_tokens: int = 16, heads: int = 4, kv_heads: int = 2
) -> tuple[Tensor, Tensor]:
    """What the backend says, and the same in float64 from keys that were moved: each [tokens, heads, head_dim]."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    shape = KVShape(1, kv_heads, 32, torch.float32)
    memory = PagedKV(shape, num_pages=200, page_tokens=page_tokens, device=CPU)
    memory.k.fill_(torch.nan)  # what nobody wrote must not matter
    memory.v.fill_(torch.nan)
    sequences, queries, expected = [], [], []
    for each in wanted:
        pages, deltas, valid, keys, values = [], [], [], [], []
        for num_tokens, delta in each.blocks:
            kv = BlockKV(random(1, kv_heads, num_tokens, 32), random(1, kv_heads, num_tokens, 32))
            block_pages = memory.store(kv)
            pages += block_pages
            deltas += [delta] * len(block_pages)
            valid += [min(page_tokens, num_tokens - i * page_tokens) for i in range(len(block_pages))]
            keys.append(shift(kv.k[0].double(), delta, INV_FREQ.double()))
            values.append(kv.v[0].double())
        num_own = each.num_before + each.num_queries
        own_kv = BlockKV(random(1, kv_heads, num_own, 32), random(1, kv_heads, num_own, 32))
        own = memory.store(own_kv)
        ints = [np.array(numbers, dtype=np.int32) for numbers in (pages, deltas, valid, own)]
        sequences.append(SequencePages(*ints, num_before=each.num_before))
        q = random(each.num_queries, heads, 32)
        queries.append(q)
        k = torch.cat([*keys, own_kv.k[0].double()], 1).repeat_interleave(heads // kv_heads, 0)
        v = torch.cat([*values, own_kv.v[0].double()], 1).repeat_interleave(heads // kv_heads, 0)
        scores = torch.einsum("qhd,hkd->hqk", q.double(), k) * 32**-0.5
        future = torch.ones(each.num_queries, k.shape[1], dtype=torch.bool).triu(1 + k.shape[1] - each.num_queries)
        expected.append(torch.einsum("hqk,hkd->qhd", scores.masked_fill(future, -torch.inf).softmax(-1), v))
    batch = PagedBatch.of(sequences, [each.num_queries for each in wanted], page_tokens, CPU)
    return backend(torch.cat(queries), memory.k[0], memory.v[0], batch), torch.cat(expected)


SEQUENCES = st.builds(
    Wanted,
    blocks=st.lists(st.tuples(st.integers(1, 40), st.integers(-300, 3000)), max_size=4).map(tuple),
    num_before=st.integers(0, 40),
    num_queries=st.integers(1, 40),
)
EXAMPLES = [
    Wanted(((20, 0), (16, 5), (3, 2000), (33, -7)), 0, 50),
    Wanted((), 0, 1),
    Wanted(((16, 1),), 17, 1),
    Wanted((), 5, 20),
]


@settings(max_examples=40, deadline=None)
@given(st.lists(SEQUENCES, min_size=1, max_size=4), st.sampled_from([8, 16, 32]))
def test_the_reference_is_moving_keys(wanted: list[Wanted], page_tokens: int) -> None:
    """Within float32's rounding, whatever the batch."""
    found, expected = run(ReferenceBackend(INV_FREQ), wanted, page_tokens=page_tokens)
    assert (found - expected).abs().max() < 1e-4


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (3, 1), (2, 2)])
@pytest.mark.parametrize("processors", [1, 8])
def test_the_kernel_is_moving_keys(heads: int, kv_heads: int, processors: int) -> None:
    """In Triton's interpreter: its arithmetic, its masks and its merging, without a GPU."""
    pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("TRITON_INTERPRET=1 runs kernels without a GPU")
    from npc_engine.inference.triton_attention import TritonBackend

    backend = TritonBackend(INV_FREQ, max_positions=4096)
    backend._num_processors = processors
    for wanted in (*([each] for each in EXAMPLES), EXAMPLES):
        found, expected = run(backend, wanted, heads=heads, kv_heads=kv_heads)
        assert (found - expected).abs().max() < 1e-4


@given(st.lists(st.one_of(st.integers(0, 6), st.none()), max_size=30))
def test_pages_have_one_owner(steps: list[int | None]) -> None:
    """A number takes as many pages, None gives the oldest back; what is refused changes nothing."""
    pool = PagePool(16)
    owned: list[tuple[int, ...]] = []
    for step in steps:
        free = pool.num_free
        if step is None:
            if owned:
                pool.free(owned.pop(0))
        elif step > free:
            with pytest.raises(BlockMemoryError, match=f"{step} pages of KV memory are needed, {free} of 16 are free"):
                pool.allocate(step)
            assert pool.num_free == free
        else:
            owned.append(pool.allocate(step))
        taken = [page for pages in owned for page in pages]
        assert len(set(taken)) == len(taken) == 16 - pool.num_free
        pool.check_integrity()


def test_what_is_stored_comes_back() -> None:
    """In pages of its own, beside others."""
    shape = KVShape(2, 3, 8, torch.float32)
    memory = PagedKV(shape, num_pages=9, page_tokens=4, device=CPU)
    blocks = [BlockKV(torch.randn(2, 3, n, 8), torch.randn(2, 3, n, 8)) for n in (1, 4, 11)]
    pages = [memory.store(kv) for kv in blocks]
    assert [len(each) for each in pages] == [1, 1, 3]
    for kv, each in zip(blocks, pages, strict=True):
        loaded = memory.load(each, kv.num_tokens)
        assert torch.equal(loaded.k, kv.k)
        assert torch.equal(loaded.v, kv.v)
