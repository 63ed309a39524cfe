"""The world moves on: how long from a tick's changes to an NPC's first token?

Regime: one NPC with many blocks of random ids (the paper's Appendix A has 300), all of them cached. In every round some
of them are replaced, and a question is asked at once: the changed blocks are encoded, packed together (1,024 tokens at
a time in buffers, 8,192 in pages), and then the final block. Beside it, in the same run, the whole prompt with full
attention.

Then the encoding alone: so many changed blocks together, against a dense prefill of as many tokens.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from npc_engine.blocks import Block
from npc_engine.cli.bench.random_blocks import (
    RandomBlocks,
    ask,
    drain,
    num_tokens_of,
    open_engine,
    time_ms,
)
from npc_engine.inference import InferenceEngine, Network, WarmUp
from npc_engine.inference.context_kind import resolve_attention
from npc_engine.inference.device import device_name

_NUM_WARM_UPS = 2
_ENCODED_BLOCKS, _ENCODED_TOKENS = 32, 128


@dataclass(frozen=True, slots=True)
class TickResult:
    """Times in ms, medians. `decision_ms`: from a tick's changes to the first token; `full_ms`: the whole prompt.

    `encode_ms`: 32 changed blocks of 128 tokens; `dense_ms`: as many tokens with full attention.
    """

    model: str
    device: str
    dtype: str
    attention: str
    context_tokens: int
    num_blocks: int
    num_changed: int
    num_rounds: int
    decision_ms: float
    decision_p95_ms: float
    full_ms: float
    encode_ms: float
    dense_ms: float
    encode_ratio: float


def bench_tick(
    network: Network,
    attention: str,
    *,
    num_blocks: int,
    num_changed: int,
    block_tokens: int,
    final_tokens: int,
    num_rounds: int,
    on_round: Callable[[int], None] = lambda number: None,
) -> TickResult:
    """Measure. `on_round` is called before each round."""
    attention = resolve_attention(attention)
    device = network.decoder.device
    source = RandomBlocks(network, seed=num_blocks)
    blocks = list(source.blocks(num_blocks * block_tokens, block_tokens))
    room = (num_blocks + num_changed * (num_rounds + _NUM_WARM_UPS)) * (block_tokens + 64)
    room += 2 * _ENCODED_BLOCKS * _ENCODED_TOKENS * (num_rounds + _NUM_WARM_UPS)
    engine, dense = (open_engine(network, each, room) for each in (attention, "buffers"))
    layout = (source.header, *blocks)
    engine.warm("npc", WarmUp(layout, (), "npc", is_awaited=True))
    drain(engine)
    times: dict[str, list[float]] = {"decision": [], "full": [], "encode": [], "dense": []}
    for number in range(_NUM_WARM_UPS + num_rounds):
        on_round(number)
        start = number * num_changed
        for i in range(start, start + num_changed):
            blocks[i % num_blocks] = source.block(block_tokens)
        layout = (source.header, *blocks)
        request = source.request("npc", layout, final_tokens, 2)
        encoded = tuple(source.block(_ENCODED_TOKENS) for _ in range(_ENCODED_BLOCKS))

        prompt = (*(t for block in layout for t in block.token_ids), *request.final_token_ids)
        measured = {
            "decision": time_ms(network, ask, engine, request),
            "full": time_ms(network, dense.full_prefill, prompt),
        }
        drain(engine)
        measured["encode"] = time_ms(network, _encode, engine, (source.header, *encoded))
        tokens = source.tokens(_ENCODED_BLOCKS * _ENCODED_TOKENS)
        measured["dense"] = time_ms(network, dense.full_prefill, tokens)
        if number >= _NUM_WARM_UPS:
            for name, ms in measured.items():
                times[name].append(ms)
    engine.close()
    dense.close()
    median = {name: statistics.median(each) for name, each in times.items()}
    return TickResult(
        model=network.name,
        device=device_name(device),
        dtype=str(network.decoder.dtype).removeprefix("torch."),
        attention=attention,
        context_tokens=num_tokens_of(layout),
        num_blocks=num_blocks,
        num_changed=num_changed,
        num_rounds=num_rounds,
        decision_ms=median["decision"],
        decision_p95_ms=sorted(times["decision"])[round(0.95 * (num_rounds - 1))],
        full_ms=median["full"],
        encode_ms=median["encode"],
        dense_ms=median["dense"],
        encode_ratio=median["encode"] / median["dense"],
    )


def _encode(engine: InferenceEngine, blocks: tuple[Block, ...]) -> None:
    engine.warm("tick", WarmUp(blocks))
    drain(engine)
