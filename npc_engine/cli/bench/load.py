"""Players who speak when they like: how long do they wait, and how much is said in all?

Regime: NPCs with contexts of random blocks, the first part of which (the world) all share; all contexts are in place.
Utterances arrive at random (Poisson) at a given rate, each for an NPC that is silent; one that comes while all speak
waits. Every reply has the same length. TTFT counts from the arrival, waiting included.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from npc_engine.cli.bench.random_blocks import RandomBlocks, drain, num_tokens_of, step
from npc_engine.inference import FinishedOutput, InferenceEngine, Network, TokenOutput, WarmUp, open_memory
from npc_engine.inference.context_kind import resolve_attention
from npc_engine.inference.device import device_name


@dataclass(frozen=True, slots=True)
class LoadRow:
    """One rate, in utterances per second. TTFT in ms."""

    rate: float
    num_utterances: int
    ttft_p50_ms: float
    ttft_p95_ms: float
    ttft_p99_ms: float
    tokens_per_s: float
    mean_talking: float


@dataclass(frozen=True, slots=True)
class LoadResult:
    """`kv_mb`: keys and values of all contexts, in pages the world once; `kv_mb_unshared`: if each had its own."""

    model: str
    device: str
    dtype: str
    attention: str
    num_npcs: int
    context_tokens: int
    shared_tokens: int
    reply_tokens: int
    seconds: float
    kv_mb: float
    kv_mb_unshared: float
    rows: tuple[LoadRow, ...]


def bench_load(
    network: Network,
    attention: str,
    rates: Sequence[float],
    *,
    num_npcs: int,
    context_tokens: int,
    shared_tokens: int,
    block_tokens: int,
    final_tokens: int,
    reply_tokens: int,
    seconds: float,
    on_row: Callable[[float], None] = lambda rate: None,
) -> LoadResult:
    """Measure every rate for so many seconds of arrivals. `on_row` is called before each."""
    attention = resolve_attention(attention)
    source = RandomBlocks(network, seed=num_npcs)
    world = (source.header, *source.blocks(shared_tokens, block_tokens))
    layouts = [(*world, *source.blocks(context_tokens - shared_tokens, block_tokens)) for _ in range(num_npcs)]
    per_token = network.kv_shape.num_bytes_per_token
    distinct = {block.id: block for layout in layouts for block in layout}
    num_shared = num_tokens_of(distinct.values())
    num_unshared = sum(num_tokens_of(layout) for layout in layouts)
    room = num_npcs * (final_tokens + reply_tokens + 512)
    is_copied = attention == "buffers"
    own = (num_unshared if is_copied else 0) + 2 * room
    cache, kind = open_memory(
        network,
        attention,
        max_block_memory=(2 * (num_shared + room) + 64 * len(distinct)) * per_token,  # pages round up
        max_context_memory=own * per_token,
        store=None,
    )
    engine = InferenceEngine(network, cache, max_context_memory=own * per_token, kind=kind)
    for npc, layout in enumerate(layouts):
        engine.warm(npc, WarmUp(layout, (), npc, is_awaited=True))
    drain(engine)
    engine.prepare(num_npcs)
    load = _Load(engine, source, layouts, final_tokens, reply_tokens)
    load.run(num_npcs * 2.0, 1.0)  # first uses of kernels
    rows = []
    for rate in rates:
        on_row(rate)
        rows.append(load.run(rate, seconds))
    engine.close()
    return LoadResult(
        model=network.name,
        device=device_name(network.decoder.device),
        dtype=str(network.decoder.dtype).removeprefix("torch."),
        attention=attention,
        num_npcs=num_npcs,
        context_tokens=context_tokens,
        shared_tokens=shared_tokens,
        reply_tokens=reply_tokens,
        seconds=seconds,
        kv_mb=(num_unshared if is_copied else num_shared) * per_token / 2**20,
        kv_mb_unshared=num_unshared * per_token / 2**20,
        rows=tuple(rows),
    )


class _Load:
    """Arrivals, and the engine that answers them."""

    def __init__(
        self,
        engine: InferenceEngine,
        source: RandomBlocks,
        layouts: Sequence[tuple],  # type: ignore[type-arg]
        final_tokens: int,
        reply_tokens: int,
    ) -> None:
        self._engine = engine
        self._source = source
        self._layouts = layouts
        self._final_tokens = final_tokens
        self._reply_tokens = reply_tokens

    def run(self, rate: float, seconds: float) -> LoadRow:
        rng = random.Random(rate)
        arrivals: list[float] = []
        while (arrival := (arrivals[-1] if arrivals else 0.0) + rng.expovariate(rate)) < seconds:
            arrivals.append(arrival)
        arrivals = arrivals or [0.0]
        silent = list(range(len(self._layouts)))
        rng.shuffle(silent)
        asked: dict[int, tuple[float, int]] = {}  # request → when it came, and the NPC
        ttfts: dict[int, float] = {}
        num_next = num_tokens = num_steps = num_talking = 0
        start_s = time.perf_counter()
        while num_next < len(arrivals) or asked:
            now = time.perf_counter() - start_s
            while num_next < len(arrivals) and arrivals[num_next] <= now and silent:
                npc = silent.pop(0)
                request = self._source.request(npc, self._layouts[npc], self._final_tokens, self._reply_tokens)
                asked[request.request_id] = (arrivals[num_next], npc)
                self._engine.submit(request)
                num_next += 1
            if not self._engine.has_work:
                continue  # nobody speaks yet
            outputs = step(self._engine)
            now = time.perf_counter() - start_s
            num_steps += 1
            num_talking += len(asked)
            for output in outputs:
                if isinstance(output, TokenOutput):
                    num_tokens += 1
                    ttfts.setdefault(output.request_id, (now - asked[output.request_id][0]) * 1000)
                elif isinstance(output, FinishedOutput):
                    silent.append(asked.pop(output.request_id)[1])
        elapsed_s = time.perf_counter() - start_s
        waits = sorted(ttfts.values())
        return LoadRow(
            rate=rate,
            num_utterances=len(arrivals),
            ttft_p50_ms=statistics.median(waits),
            ttft_p95_ms=waits[round(0.95 * (len(waits) - 1))],
            ttft_p99_ms=waits[round(0.99 * (len(waits) - 1))],
            tokens_per_s=num_tokens / elapsed_s,
            mean_talking=num_talking / max(1, num_steps),
        )
