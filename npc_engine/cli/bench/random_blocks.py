"""Prompts that say nothing, for measurements: blocks of random token ids behind a header."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Hashable, Iterable
from typing import ParamSpec

from npc_engine.blocks import Block
from npc_engine.config import SamplingParams
from npc_engine.inference import (
    FailedOutput,
    GenerationRequest,
    InferenceEngine,
    Network,
    Output,
    TokenOutput,
    open_memory,
)
from npc_engine.inference.device import synchronize

P = ParamSpec("P")

_HEADER_TOKENS = 32


class RandomBlocks:
    """A reproducible source of blocks and requests for one network."""

    def __init__(self, network: Network, seed: int) -> None:
        self._network = network
        self._rng = random.Random(seed)
        self._num_requests = 0
        self.header = Block.behind(network.identity, (), self.tokens(_HEADER_TOKENS))

    def tokens(self, number: int) -> tuple[int, ...]:
        return tuple(self._rng.randrange(3, self._network.config.vocab_size) for _ in range(number))

    def block(self, num_tokens: int) -> Block:
        """A block behind the header."""
        return self.block_of(self.tokens(num_tokens), self.header)

    def block_of(self, token_ids: tuple[int, ...], *parents: Block) -> Block:
        return Block.behind(self._network.identity, parents, token_ids)

    def blocks(self, num_tokens: int, block_tokens: int) -> tuple[Block, ...]:
        """Blocks of `block_tokens`, the last one smaller, `num_tokens` in all."""
        return tuple(self.block(min(block_tokens, num_tokens - start)) for start in range(0, num_tokens, block_tokens))

    def request(
        self, conversation: Hashable, blocks: tuple[Block, ...], final_tokens: int, reply_tokens: int
    ) -> GenerationRequest:
        """A greedy reply of exactly `reply_tokens`. Ids count from 1."""
        self._num_requests += 1
        return GenerationRequest(
            request_id=self._num_requests,
            conversation=conversation,
            blocks=blocks,
            turns=(),
            final_token_ids=self.tokens(final_tokens),
            sampling=SamplingParams(max_tokens=reply_tokens, temperature=0.0),
            seed=0,
            stop_ids=frozenset(),
        )


def step(engine: InferenceEngine) -> list[Output]:
    """One step. Raises what a request failed with."""
    outputs = engine.step()
    for output in outputs:
        if isinstance(output, FailedOutput):
            raise output.error
    return outputs


def drain(engine: InferenceEngine) -> None:
    """Step until nothing is left to do."""
    while engine.has_work:
        step(engine)


def ask(engine: InferenceEngine, request: GenerationRequest) -> None:
    """Submit, and step until the first token."""
    engine.submit(request)
    while not any(isinstance(output, TokenOutput) for output in step(engine)):
        pass


def open_engine(network: Network, attention: str, num_tokens: int) -> InferenceEngine:
    """An engine with room for so many tokens of blocks, half as many of contexts, and no disk."""
    num_bytes = num_tokens * network.kv_shape.num_bytes_per_token
    cache, kind = open_memory(
        network, attention, max_block_memory=num_bytes, max_context_memory=num_bytes // 2, store=None
    )
    return InferenceEngine(network, cache, max_context_memory=num_bytes // 2, kind=kind)


def time_ms(network: Network, work: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> float:
    """How long it takes until the device has done it, too."""
    synchronize(network.decoder.device)
    start_s = time.perf_counter()
    work(*args, **kwargs)
    synchronize(network.decoder.device)
    return (time.perf_counter() - start_s) * 1000


def num_tokens_of(blocks: Iterable[Block]) -> int:
    return sum(block.num_tokens for block in blocks)
