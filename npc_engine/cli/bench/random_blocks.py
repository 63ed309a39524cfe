"""Prompts that say nothing, for measurements: blocks of random token ids behind a header."""

from __future__ import annotations

import random
from collections.abc import Hashable, Iterable

from npc_engine.blocks import Block
from npc_engine.config import SamplingParams
from npc_engine.inference import FailedOutput, GenerationRequest, InferenceEngine, Network, Output, TokenOutput

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
        return Block.behind(self._network.identity, (self.header,), self.tokens(num_tokens))

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


def step_to_first_token(engine: InferenceEngine) -> None:
    """Step until somebody says something."""
    while not any(isinstance(output, TokenOutput) for output in step(engine)):
        pass


def num_tokens_of(blocks: Iterable[Block]) -> int:
    return sum(block.num_tokens for block in blocks)
