"""Bucketed passes without a GPU: recordings of fixed shapes say what an exact pass says, whatever the layouts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from npc_engine.blocks import Block, BlockCache, KVShape, Layout
from npc_engine.blocks.pages import PagedKV
from npc_engine.config import SamplingParams
from npc_engine.errors import BlockMemoryError
from npc_engine.inference import FinishedOutput, GenerationRequest, InferenceEngine, Network
from npc_engine.inference.context_kind import PagedContexts
from npc_engine.inference.encoding import EncodingJob
from npc_engine.inference.forward_pass import BucketedPass, EagerPass, Recording, bucket_for
from npc_engine.inference.paged_attention import ReferenceBackend
from npc_engine.inference.paged_context import PagedContext
from npc_engine.inference.random_network import random_network

CPU = torch.device("cpu")


def plain(run: Callable[[], Tensor]) -> Recording:
    """A recording that runs everything again, into the same logits."""
    logits = run().clone()
    return Recording(lambda: logits.copy_(run()), logits)


class Stage:
    """A tiny network with paged contexts over a few encoded blocks."""

    def __init__(self, network: Network) -> None:
        shape = KVShape(*network.kv_shape)
        self.network = network
        self.memory = PagedKV(shape, num_pages=400, page_tokens=16, device=CPU)
        self.memory.k.fill_(torch.nan)  # what nobody wrote must not matter
        self.memory.v.fill_(torch.nan)
        self.cache = BlockCache(shape, CPU, max_bytes=1 << 30, store=None, memory=self.memory)
        self.kind = PagedContexts(self.cache, self.memory, network.rope, ReferenceBackend(network.rope))
        header = Block.behind(network.identity, (), range(3, 20))
        self.blocks = [header]
        self.blocks += [Block.behind(network.identity, (header,), range(30 + i, 60 + 7 * i)) for i in range(4)]
        with torch.inference_mode():
            for blocks in (self.blocks[:1], self.blocks[1:]):
                job = EncodingJob(network.decoder, self.kind, blocks, {header.id: header})
                while not job.is_done:
                    job.advance()
                for block, kv in job.results():
                    self.cache.put(block, kv)
                job.close()

    def context(self, indices: tuple[int, ...]) -> PagedContext:
        context = self.kind.create()
        context.place(Layout.of([self.blocks[0], *(self.blocks[1 + i] for i in indices)]), self.cache.get, room=8)
        return context


@pytest.fixture(scope="module")
def network() -> Network:
    return random_network("tiny", device="cpu", dtype="float32")


LAYOUTS = st.lists(
    st.permutations(range(4)).flatmap(lambda p: st.integers(0, 4).map(lambda n: tuple(p[:n]))), min_size=1, max_size=5
)


@settings(max_examples=25, deadline=None)
@given(LAYOUTS, st.integers(1, 70), st.data())
def test_a_recording_is_the_pass(
    network: Network, layouts: list[tuple[int, ...]], num_final: int, data: st.DataObject
) -> None:
    """A final block each, one after the other, then decoding together; padding disturbs nobody."""
    stage = Stage(network)
    num_free = stage.memory.pool.num_free
    bucketed = BucketedPass(network.decoder, stage.kind, plain)
    eager = EagerPass(network.decoder, stage.kind)
    ours = [stage.context(layout) for layout in layouts]
    theirs = [stage.context(layout) for layout in layouts]
    ids = st.lists(st.integers(3, 500), min_size=num_final, max_size=num_final)
    with torch.inference_mode():
        for one, other in zip(ours, theirs, strict=True):
            final = [data.draw(ids)]
            assert torch.allclose(bucketed([one], final), eager([other], final), atol=1e-4)
        for _ in range(2):
            new = [[data.draw(st.integers(3, 500))] for _ in layouts]
            assert torch.allclose(bucketed(ours, new), eager(theirs, new), atol=1e-4)
    for context in (*ours, *theirs):
        context.close()
    stage.memory.pool.check_integrity()
    assert stage.memory.pool.num_free == num_free


def test_a_shape_is_recorded_once(network: Network) -> None:
    """Whatever the layout; :meth:`prepare` makes those that come first."""
    made: list[int] = []

    def record(run: Callable[[], Tensor]) -> Recording:
        made.append(1)
        return plain(run)

    stage = Stage(network)
    bucketed = BucketedPass(network.decoder, stage.kind, record)
    with torch.inference_mode():
        for layout in ((0,), (1, 2), (3,)):
            bucketed([stage.context(layout)], [[5] * 20])
        assert len(made) == 1
        bucketed.prepare(3)
        assert len(made) == 11  # eight sizes of final blocks, and 1, 2 and 4 conversations
        bucketed.prepare(3)
        bucketed([stage.context((0,)), stage.context((1,)), stage.context((2,))], [[5], [6], [7]])
    assert len(made) == 11


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([1], (1, 1)),
        ([1] * 5, (8, 8)),
        ([50], (64, 1)),
        ([16], (16, 1)),
        ([257], None),
        ([1] * 300, None),
        ([2, 1], None),
    ],
)
def test_buckets(lengths: list[int], expected: tuple[int, int] | None) -> None:
    """The next larger one; none for what is too large, or mixed."""
    shape = bucket_for(lengths)
    assert (None if shape is None else shape[:2]) == expected


def test_what_does_not_fit_leaves_nothing_held(network: Network) -> None:
    """An encoding that runs out of pages gives back its own, and its references to parents."""
    stage = Stage(network)
    header = stage.blocks[0]
    num_free = stage.memory.pool.num_free
    blocks = [Block.behind(network.identity, (header,), range(10 + i, 300 + i)) for i in range(40)]
    with pytest.raises(BlockMemoryError):
        EncodingJob(network.decoder, stage.kind, blocks, {header.id: header})
    assert stage.memory.pool.num_free == num_free
    assert stage.cache._pool.ref_count(header.id) == 0


def test_waves_get_smaller_with_the_room(network: Network) -> None:
    """Blocks that are encoded together have to fit twice: while they are computed, and as a copy."""
    stage = Stage(network)
    before = stage.kind.max_encoding_tokens
    stage.memory.pool.allocate(200)
    assert stage.kind.max_encoding_tokens < before <= 400 * 16 // 4


def test_forced_logits_outlive_the_next_pass(network: Network) -> None:
    """Two forced replies of one token: each keeps its own."""
    stage = Stage(network)
    engine = InferenceEngine(network, stage.cache, max_context_memory=1 << 24, kind=stage.kind)
    engine._forward = BucketedPass(network.decoder, stage.kind, plain)
    kept = []
    for number, final in enumerate(([5, 6, 7], [9, 8, 4])):
        engine.submit(
            GenerationRequest(
                request_id=number,
                conversation=number,
                blocks=tuple(stage.blocks[:2]),
                turns=(),
                final_token_ids=tuple(final),
                sampling=SamplingParams(),
                seed=0,
                stop_ids=frozenset(),
                forced_token_ids=(11,),
            )
        )
        outputs = []
        while engine.has_work:
            outputs += engine.step()
        (finished,) = (output for output in outputs if isinstance(output, FinishedOutput))
        assert finished.forced_logits is not None
        kept.append((finished.forced_logits, finished.forced_logits.clone()))
    assert all(torch.equal(now, then) for now, then in kept)
    assert not torch.equal(kept[0][0], kept[1][0])
