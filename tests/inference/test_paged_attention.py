"""Attention over pages: the same as moving every key in float64, for any batch, on every backend that runs here."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name that every torch user knows
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from npc_engine.blocks import BlockKV, KVShape
from npc_engine.blocks.pages import PagedKV, PagePool
from npc_engine.blocks.positions import rotate, shift, tables
from npc_engine.errors import BlockMemoryError
from npc_engine.inference.paged_attention import CachedPages, PagedBackend, PagedStep, ReferenceBackend, SequencePages
from npc_engine.inference.rope import RotaryTable
from npc_engine.inference.rope_config import RopeConfig

CPU = torch.device("cpu")
ROPE = RotaryTable(RopeConfig(theta=10_000.0), 32, CPU)
INV_FREQ = 1.0 / 10_000 ** (torch.arange(0, 32, 2) / 32)


@dataclass(frozen=True)
class Wanted:
    """A sequence to be attended: cached blocks as (tokens, delta), own tokens that are there, and its queries."""

    blocks: tuple[tuple[int, int], ...]
    num_before: int
    num_queries: int


def run(
    backend: PagedBackend,
    wanted: list[Wanted],
    *,
    page_tokens: int = 16,
    heads: int = 4,
    kv_heads: int = 2,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """What the backend says, and the same in float64 from keys that were moved: each [tokens, heads, head_dim]."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    shape = KVShape(1, kv_heads, 32, dtype)
    memory = PagedKV(shape, num_pages=200, page_tokens=page_tokens, device=device)
    memory.k.fill_(torch.nan)  # what nobody wrote must not matter
    memory.v.fill_(torch.nan)
    inv_freq = INV_FREQ.double().to(device)
    sequences, fresh, expected = [], [], []
    for each in wanted:
        cached, keys, values = [], [], []
        for num_tokens, delta in each.blocks:
            kv = BlockKV(random(1, kv_heads, num_tokens, 32), random(1, kv_heads, num_tokens, 32))
            cached.append(CachedPages.of(memory.store(kv), delta, num_tokens, page_tokens))
            keys.append(shift(kv.k[0].double(), delta, inv_freq))
            values.append(kv.v[0].double())
        # Own keys are stored rotated: those before by hand, the new ones by the backend, from `position` on.
        before = BlockKV(random(1, kv_heads, each.num_before, 32), random(1, kv_heads, each.num_before, 32))
        own = memory.pool.allocate(memory.num_pages_for(each.num_before + each.num_queries))
        rows = memory.rows(own, 0, each.num_before)
        memory.k[:, :, rows], memory.v[:, :, rows] = before.k, before.v
        position = 7 + each.num_before
        pages = CachedPages.joined(cached)
        sequences.append(SequencePages(pages, np.array(own, dtype=np.int32), each.num_before, position))
        qkv = random(each.num_queries, heads + 2 * kv_heads, 32)
        fresh.append(qkv)
        positions = torch.arange(position, position + each.num_queries, device=device).double()
        rotated = rotate(qkv.double(), *tables(positions[:, None, None] * inv_freq))
        q, k = rotated[:, :heads], rotated[:, heads : heads + kv_heads].transpose(0, 1)
        k = torch.cat([*keys, before.k[0].double(), k], 1).repeat_interleave(heads // kv_heads, 0)
        v = qkv[:, heads + kv_heads :].double().transpose(0, 1)
        v = torch.cat([*values, before.v[0].double(), v], 1).repeat_interleave(heads // kv_heads, 0)
        scores = torch.einsum("qhd,hkd->hqk", q, k) * 32**-0.5
        future = torch.ones(each.num_queries, k.shape[1], dtype=torch.bool).triu(1 + k.shape[1] - each.num_queries)
        scores = scores.masked_fill(future.to(device), -torch.inf)
        expected.append(torch.einsum("hqk,hkd->qhd", scores.softmax(-1), v))
    step = PagedStep.of(sequences, [[0] * each.num_queries for each in wanted], page_tokens, device)
    packed = torch.cat(fresh)
    qk, v = packed[:, : heads + kv_heads], packed[:, heads + kv_heads :]
    q = backend.store(qk, v, memory.k[0], memory.v[0], step)
    return backend.attend(q, memory.k[0], memory.v[0], step), torch.cat(expected)


SEQUENCES = st.builds(
    Wanted,
    blocks=st.lists(st.tuples(st.integers(1, 40), st.integers(-300, 3000)), max_size=4).map(tuple),
    num_before=st.integers(0, 40),
    num_queries=st.integers(1, 40),
)
EXAMPLES = [
    Wanted(((20, 0), (16, 5), (3, 2000), (33, -7), (700, 40)), 0, 50),
    Wanted((), 0, 1),
    Wanted(((16, 1),), 17, 1),
    Wanted((), 5, 20),
]


@settings(max_examples=40, deadline=None)
@given(st.lists(SEQUENCES, min_size=1, max_size=4), st.sampled_from([8, 16, 32]))
def test_the_reference_is_moving_keys(wanted: list[Wanted], page_tokens: int) -> None:
    """Within float32's rounding, whatever the batch."""
    found, expected = run(ReferenceBackend(ROPE), wanted, page_tokens=page_tokens)
    assert (found - expected).abs().max() < 1e-4


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (3, 1), (2, 2)])
@pytest.mark.parametrize(
    ("processors", "num_keys", "turns_queries"), [(1, 32, True), (8, 64, True), (1, 16, False), (8, 32, False)]
)
def test_the_kernel_is_moving_keys(
    heads: int, kv_heads: int, processors: int, num_keys: int, turns_queries: bool
) -> None:
    """In Triton's interpreter: its arithmetic, its masks and its merging, without a GPU."""
    pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("TRITON_INTERPRET=1 runs kernels without a GPU")
    from npc_engine.inference.triton_attention import TritonBackend, Tuning

    tuning = Tuning(32, turns_queries, num_keys, num_warps=4, num_stages=2, programs_per_processor=4)
    backend = TritonBackend(ROPE, max_positions=4096, tuning=tuning)
    backend._num_processors = processors
    for wanted in (*([each] for each in EXAMPLES), EXAMPLES):
        found, expected = run(backend, wanted, heads=heads, kv_heads=kv_heads, page_tokens=32 if heads == 4 else 16)
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


def test_small_kernels_are_torchs() -> None:
    """In Triton's interpreter: the gate, and RMSNorm as the decoder computes it elsewhere."""
    pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("TRITON_INTERPRET=1 runs kernels without a GPU")
    from npc_engine.inference.triton_attention import rms_norm, silu_mul

    x = torch.randn(5, 2 * 1100, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(silu_mul(x), F.silu(x[:, :1100]) * x[:, 1100:], atol=1e-6)
    weight = torch.rand(2200)
    assert torch.allclose(rms_norm(x, weight, 1e-5), F.rms_norm(x, (2200,), weight, 1e-5), atol=1e-5)
