"""A question behind a context of any length: how long until the first token, and how close is that to the hardware?

Regime: one NPC, blocks of about 160 tokens of random ids behind a header, all of them cached; then a final block of 50
tokens. A measurement runs from token ids on the host to the first token id on the host, through the inference engine's
steps (no tokenizer, no event loop). Beside it, with the same weights in the same run, interleaved:

- *full*: the whole prompt with full attention, nothing cached;
- *copied*: the paper's way, the cached blocks concatenated and their keys moved for every request;
- *prefix cache, best*: every block behind all before it, and the last one has changed: it and the final block are
  computed. Its *worst*, a change of the first block, is *full*.

The *floor* is what memory allows: the weights without the embedding table, and the context's keys and values, each read
once at the bandwidth of a large copy on the same device.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Hashable, Sequence
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
from npc_engine.inference.device import copy_bandwidth, device_name

_NUM_WARM_UPS = 3  # rounds that are not counted: first allocations, first use of kernels

PAPER = {50: 26, 512: 26, 1024: 26, 2048: 26, 4096: 27, 8192: 29, 16384: 34, 32768: 45}
"""TTFT over blocks in ms, by prompt length: arXiv 2409.15355, Llama-3 8B, its own hardware and final block of 50."""


@dataclass(frozen=True, slots=True)
class TtftRow:
    """One context length. Times in ms, medians; the amounts of arithmetic in GFLOP."""

    context_tokens: int
    num_blocks: int
    ttft_ms: float
    ttft_p95_ms: float
    floor_ms: float
    ratio_to_floor: float
    full_ms: float
    copied_ms: float
    prefix_best_ms: float
    gflop: float
    gflop_full: float
    paper_ms: int | None


@dataclass(frozen=True, slots=True)
class TtftResult:
    """`bandwidth_gb_s`: bytes read and written in a copy, per second. `prepare_s`: kernels and graphs, once."""

    model: str
    device: str
    dtype: str
    attention: str
    final_tokens: int
    num_rounds: int
    bandwidth_gb_s: float
    weight_gb: float
    prepare_s: float
    rows: tuple[TtftRow, ...]


def bench_ttft(
    network: Network,
    attention: str,
    lengths: Sequence[int],
    *,
    block_tokens: int,
    final_tokens: int,
    num_rounds: int,
    on_round: Callable[[int], None] = lambda context_tokens: None,
) -> TtftResult:
    """Measure every context length. `on_round` is called before each round with its length."""
    attention = resolve_attention(attention)
    device = network.decoder.device
    bandwidth = copy_bandwidth(device)
    num_weights = network.decoder.weights.num_parameters - network.decoder.weights.embedding.numel()
    if network.config.tie_word_embeddings:
        num_weights += network.decoder.weights.embedding.numel()  # read once, as the last projection
    weight_bytes = num_weights * network.decoder.dtype.itemsize
    rows = []
    prepare_s = 0.0
    for length in lengths:
        bench = _Bench(network, attention, length, block_tokens, final_tokens)
        prepare_s = prepare_s or bench.prepare()
        times = bench.run(num_rounds, lambda length=length: on_round(length))  # type: ignore[misc]
        ttfts = times["blocks"]
        num_bytes = weight_bytes + bench.num_context * network.kv_shape.num_bytes_per_token
        floor_ms = num_bytes / bandwidth * 1000
        median = {name: statistics.median(each) for name, each in times.items()}
        rows.append(
            TtftRow(
                context_tokens=bench.num_context,
                num_blocks=len(bench.blocks),
                ttft_ms=median["blocks"],
                ttft_p95_ms=sorted(ttfts)[round(0.95 * (len(ttfts) - 1))],
                floor_ms=floor_ms,
                ratio_to_floor=median["blocks"] / floor_ms,
                full_ms=median["full"],
                copied_ms=median["copied"],
                prefix_best_ms=median["prefix"],
                gflop=_gflop(network, num_weights, final_tokens, bench.num_context),
                gflop_full=_gflop(network, num_weights, bench.num_context + final_tokens, 0),
                paper_ms=PAPER.get(length or final_tokens),
            )
        )
        bench.close()
    return TtftResult(
        model=network.name,
        device=device_name(device),
        dtype=str(network.decoder.dtype).removeprefix("torch."),
        attention=attention,
        final_tokens=final_tokens,
        num_rounds=num_rounds,
        bandwidth_gb_s=bandwidth / 1e9,
        weight_gb=weight_bytes / 1e9,
        prepare_s=prepare_s,
        rows=tuple(rows),
    )


class _Bench:
    """One context length: blocks that are cached, and ways to ask about them."""

    def __init__(
        self, network: Network, attention: str, context_tokens: int, block_tokens: int, final_tokens: int
    ) -> None:
        self._network = network
        self._source = RandomBlocks(network, seed=context_tokens)
        self._final_tokens = final_tokens
        header = self._source.header
        room = 4 * (context_tokens + 2 * final_tokens + 4 * block_tokens + header.num_tokens)
        self._engine = open_engine(network, attention, room)
        self._copying = open_engine(network, "buffers", room)
        # A header and blocks, `context_tokens` in all, but at least the header; and the same, each behind all others.
        self.blocks = (header, *self._source.blocks(context_tokens - header.num_tokens, block_tokens))
        self._chain: tuple[Block, ...] = ()
        for block in self.blocks:
            self._chain = (*self._chain, self._source.block_of(block.token_ids, *self._chain))
        self._engine.warm("npc", WarmUp(self.blocks, (), "npc", is_awaited=True))
        drain(self._engine)
        for blocks in (self.blocks, self._chain):
            self._copying.warm("npc", WarmUp(blocks))
            drain(self._copying)

    def prepare(self) -> float:
        return self._engine.prepare(1)

    @property
    def num_context(self) -> int:
        return num_tokens_of(self.blocks)

    def run(self, num_rounds: int, on_round: Callable[[], None]) -> dict[str, list[float]]:
        """Times in ms by way of asking, one of each per round."""
        times: dict[str, list[float]] = {"blocks": [], "full": [], "copied": [], "prefix": []}
        for i in range(_NUM_WARM_UPS + num_rounds):
            on_round()
            measured = {
                "blocks": self._ask(self._engine, self.blocks, "npc"),
                "full": self._full(),
                "copied": self._ask(self._copying, self.blocks, f"copied {i}"),
                "prefix": self._ask_prefix(i),
            }
            if i >= _NUM_WARM_UPS:
                for name, ms in measured.items():
                    times[name].append(ms)
        return times

    def close(self) -> None:
        self._engine.close()
        self._copying.close()

    def _ask(self, engine: InferenceEngine, blocks: tuple[Block, ...], conversation: Hashable) -> float:
        """From submitting a final block to its first token; the rest of the reply is not counted."""
        # Two tokens: the end of a reply is not part of its beginning.
        request = self._source.request(conversation, blocks, self._final_tokens, 2)
        elapsed_ms = time_ms(self._network, ask, engine, request)
        drain(engine)
        return elapsed_ms

    def _ask_prefix(self, number: int) -> float:
        """A prefix cache in its best order: the conversation stands, and its last block has changed."""
        kept = self._chain[:-1]
        conversation = f"prefix {number}"
        self._copying.warm(conversation, WarmUp(kept, (), conversation, is_awaited=True))
        drain(self._copying)
        last = self._source.block_of(self._source.tokens(self._chain[-1].num_tokens), *kept)
        return self._ask(self._copying, (*kept, last), conversation)

    def _full(self) -> float:
        tokens = tuple(token_id for block in self.blocks for token_id in block.token_ids)
        prompt = (*tokens, *self._source.tokens(self._final_tokens))
        return time_ms(self._network, self._copying.full_prefill, prompt)


def _gflop(network: Network, num_weights: int, num_tokens: int, num_before: int) -> float:
    """Of computing these tokens behind others: two per weight and token, four per pair of query and key dimension."""
    config = network.config
    head = config.vocab_size * config.hidden_size  # for the last token alone
    products = 2 * (num_weights - head) * num_tokens + 2 * head
    pairs = num_tokens * num_before + num_tokens * (num_tokens + 1) / 2
    return (products + 4 * config.num_layers * config.num_heads * config.head_dim * pairs) / 1e9
