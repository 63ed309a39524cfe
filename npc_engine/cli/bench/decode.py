"""NPCs that talk at once: how many tokens a second, in all and each?

Regime: every NPC has a context of blocks of random ids, the first part of which (the world) is the same for all; all
contexts are in place and every NPC is asked at the same moment. What is timed is the steps that decode, all of them
together in one batch; final blocks are not.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from npc_engine.cli.bench.random_blocks import RandomBlocks, drain, num_tokens_of, step
from npc_engine.inference import InferenceEngine, Network, TokenOutput, WarmUp, open_memory
from npc_engine.inference.context_kind import resolve_attention
from npc_engine.inference.device import device_name

_FINAL_TOKENS = 20


@dataclass(frozen=True, slots=True)
class DecodeRow:
    """So many NPCs at once. `kv_mb`: keys and values of all contexts, shared blocks once; `kv_mb_unshared`: each."""

    num_npcs: int
    tokens_per_s: float
    tokens_per_s_each: float
    step_ms: float
    step_p95_ms: float
    kv_mb: float
    kv_mb_unshared: float


@dataclass(frozen=True, slots=True)
class DecodeResult:
    """`tokens_per_s` is that of the first row."""

    model: str
    device: str
    dtype: str
    attention: str
    context_tokens: int
    shared_tokens: int
    reply_tokens: int
    tokens_per_s: float
    rows: tuple[DecodeRow, ...]


def bench_decode(
    network: Network,
    attention: str,
    nums_npcs: Sequence[int],
    *,
    context_tokens: int,
    shared_tokens: int,
    block_tokens: int,
    reply_tokens: int,
    on_row: Callable[[int], None] = lambda num_npcs: None,
) -> DecodeResult:
    """Measure every number of NPCs. `on_row` is called before each."""
    attention = resolve_attention(attention)
    rows = []
    for num_npcs in nums_npcs:
        on_row(num_npcs)
        rows.append(_measure(network, attention, num_npcs, context_tokens, shared_tokens, block_tokens, reply_tokens))
    device = network.decoder.device
    return DecodeResult(
        model=network.name,
        device=device_name(device),
        dtype=str(network.decoder.dtype).removeprefix("torch."),
        attention=attention,
        context_tokens=context_tokens,
        shared_tokens=shared_tokens,
        reply_tokens=reply_tokens,
        tokens_per_s=rows[0].tokens_per_s,
        rows=tuple(rows),
    )


def _measure(
    network: Network,
    attention: str,
    num_npcs: int,
    context_tokens: int,
    shared_tokens: int,
    block_tokens: int,
    reply_tokens: int,
) -> DecodeRow:
    source = RandomBlocks(network, seed=num_npcs)
    world = (source.header, *source.blocks(shared_tokens, block_tokens))
    layouts = [(*world, *source.blocks(context_tokens - shared_tokens, block_tokens)) for _ in range(num_npcs)]
    distinct = {block.id: block for layout in layouts for block in layout}
    per_token = network.kv_shape.num_bytes_per_token
    num_shared = num_tokens_of(distinct.values())
    num_unshared = sum(num_tokens_of(layout) for layout in layouts)
    room = num_npcs * (_FINAL_TOKENS + reply_tokens + 64)  # and what pages round up
    max_context_memory = (num_unshared + num_npcs * 512 + room) * per_token
    cache, kind = open_memory(
        network,
        attention,
        max_block_memory=(2 * num_shared + 64 * len(distinct)) * per_token,
        max_context_memory=max_context_memory,
        store=None,
    )
    engine = InferenceEngine(network, cache, max_context_memory=max_context_memory, kind=kind)
    engine.prepare(num_npcs)
    for i, layout in enumerate(layouts):
        engine.warm(i, WarmUp(layout, (), i, is_awaited=True))
    drain(engine)
    for i, layout in enumerate(layouts):
        engine.submit(source.request(i, layout, _FINAL_TOKENS, reply_tokens))
    steps_ms: list[float] = []
    while engine.has_work:
        start_s = time.perf_counter()
        outputs = step(engine)
        if sum(isinstance(output, TokenOutput) for output in outputs) == num_npcs and len(outputs) >= num_npcs:
            steps_ms.append((time.perf_counter() - start_s) * 1000)
    engine.close()
    # A single NPC's prefill gives one token, too: it is the first of them. The second one warms up.
    steps_ms = steps_ms[2:] or steps_ms
    step_ms = statistics.median(steps_ms)
    return DecodeRow(
        num_npcs=num_npcs,
        tokens_per_s=num_npcs / step_ms * 1000,
        tokens_per_s_each=1000 / step_ms,
        step_ms=step_ms,
        step_p95_ms=sorted(steps_ms)[round(0.95 * (len(steps_ms) - 1))],
        kv_mb=num_shared * per_token / 2**20,
        kv_mb_unshared=num_unshared * per_token / 2**20,
    )
