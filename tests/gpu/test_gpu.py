"""On a GPU: kernels against float64, graphs against single launches, replies against a CPU. ``make test-gpu``."""

from __future__ import annotations

import random

import pytest
import torch

from npc_engine.blocks import Block
from npc_engine.config import SamplingParams
from npc_engine.inference import FinishedOutput, GenerationRequest, InferenceEngine, Network, open_memory
from npc_engine.inference.forward_pass import EagerPass
from npc_engine.inference.random_network import random_network
from npc_engine.inference.rope import RotaryTable
from npc_engine.inference.rope_config import RopeConfig
from tests.inference.test_paged_attention import EXAMPLES, Wanted, run

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

CUDA = torch.device("cuda")
MANY = [Wanted(((64, 3 * i), (17, -5), (32, 900)), 5 * i, 1 + i % 3) for i in range(24)]
LONG = [Wanted(tuple((20 + 7 * i % 90, 100 * i) for i in range(40)), 9, 50)]


@pytest.mark.parametrize(("heads", "kv_heads"), [(8, 2), (9, 3)])
@pytest.mark.parametrize("page_tokens", [32, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_is_moving_keys(heads: int, kv_heads: int, page_tokens: int, dtype: torch.dtype) -> None:
    """Against float64; bfloat16 within what a fresh product of that precision is off."""
    from npc_engine.inference.triton_attention import TritonBackend

    rope = RotaryTable(RopeConfig(theta=10_000.0), 32, CUDA)
    backend = TritonBackend(rope, max_positions=8192)
    for wanted in (*([each] for each in EXAMPLES), EXAMPLES, MANY, LONG):
        found, expected = run(
            backend, wanted, page_tokens=page_tokens, heads=heads, kv_heads=kv_heads, device=CUDA, dtype=dtype
        )
        error = (found.double() - expected).norm() / expected.norm()
        assert error < (1e-5 if dtype is torch.float32 else 1e-2)


@pytest.fixture(scope="module")
def network() -> Network:
    return random_network("smollm2-135m", device="cuda", dtype="float32")


class Talk:
    """Conversations over random blocks, all asked at once."""

    def __init__(self, network: Network, attention: str, *, is_eager: bool = False, max_tokens: int = 16) -> None:
        self.network = network
        cache, kind = open_memory(network, attention, max_block_memory=1 << 30, max_context_memory=1 << 30, store=None)
        self.engine = InferenceEngine(network, cache, max_context_memory=1 << 30, kind=kind)
        if is_eager:
            self.engine._forward = EagerPass(network.decoder, kind)
        self.max_tokens = max_tokens
        self.num_requests = 0

    def replies(self, *, num_npcs: int, at_once: bool) -> list[tuple[int, ...]]:
        rng = random.Random(0)

        def tokens(number: int) -> tuple[int, ...]:
            return tuple(rng.randrange(3, 40_000) for _ in range(number))

        header = self.block(tokens(30))
        world = [self.block(tokens(40 + 9 * i), header) for i in range(8)]
        said: dict[int, tuple[int, ...]] = {}
        for npc in range(num_npcs):
            own = [self.block(tokens(20 + 5 * npc + i), header) for i in range(4)]
            self.engine.submit(
                GenerationRequest(
                    request_id=npc,
                    conversation=npc,
                    blocks=(header, *rng.sample(world, 5), *own),
                    turns=(),
                    final_token_ids=tokens(5 + 7 * npc),
                    sampling=SamplingParams(max_tokens=self.max_tokens, temperature=0, repetition_penalty=1.1),
                    seed=0,
                    stop_ids=frozenset(),
                )
            )
            if not at_once:
                self.finish(said)
        self.finish(said)
        return [said[npc] for npc in range(num_npcs)]

    def block(self, token_ids: tuple[int, ...], *parents: Block) -> Block:
        return Block.behind(self.network.identity, parents, token_ids)

    def finish(self, said: dict[int, tuple[int, ...]]) -> None:
        while self.engine.has_work:
            for output in self.engine.step():
                if isinstance(output, FinishedOutput):
                    said[output.request_id] = output.sampled_token_ids


def test_replies_are_those_of_a_cpu(network: Network) -> None:
    """Greedy, float32: pages and graphs on the GPU, buffers on the CPU with the same weights."""
    cpu = random_network("smollm2-135m", device="cpu", dtype="float32")
    _copy_weights(network, cpu)
    expected = Talk(cpu, "buffers").replies(num_npcs=3, at_once=False)
    assert Talk(network, "triton").replies(num_npcs=3, at_once=False) == expected


def test_a_graph_is_the_same_launches(network: Network) -> None:
    """Replayed, launched one by one, and with torch's operations: the same replies."""
    replayed = Talk(network, "triton").replies(num_npcs=6, at_once=True)
    assert replayed == Talk(network, "triton", is_eager=True).replies(num_npcs=6, at_once=True)
    assert replayed == Talk(network, "sdpa").replies(num_npcs=6, at_once=True)


def test_together_is_one_by_one(network: Network) -> None:
    """What an NPC says does not depend on who else speaks."""
    together = Talk(network, "triton").replies(num_npcs=6, at_once=True)
    assert together == Talk(network, "triton").replies(num_npcs=6, at_once=False)


def _copy_weights(source: Network, target: Network) -> None:
    for ours, theirs in zip(_tensors(target.decoder.weights), _tensors(source.decoder.weights), strict=True):
        ours.copy_(theirs)


def _tensors(thing: object) -> list[torch.Tensor]:
    """Every tensor in weights, in one order."""
    if isinstance(thing, torch.Tensor):
        return [thing]
    if isinstance(thing, tuple | list):
        return [tensor for each in thing for tensor in _tensors(each)]
    names = getattr(thing, "__slots__", None) or sorted(getattr(thing, "__dict__", {}))
    return [tensor for name in names for tensor in _tensors(getattr(thing, name))]
