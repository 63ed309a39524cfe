"""One block in the middle of the prompt was edited: how long until the first token?

Regime: one NPC, a prompt of about 2,000 tokens in at least 12 blocks, a 50-token final block, one player. Before every
measurement one lore entry in the middle of the prompt gets a new text through the engine's own patch and tick; when its
block is encoded (in idle time, measured apart), the player speaks. The baseline is the same prompt computed with full
attention by the same decoder in the same process, right after: it is the best that an engine can do which keeps no
blocks, and it is not charged for tokenizing, ticking or streaming. Everything else is: TTFT runs from ``say`` to the
first token on the event loop.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from npc_engine.cli.bench.loop_monitor import LoopMonitor
from npc_engine.cli.bench.world import lore_text, synthetic_world
from npc_engine.config import EngineConfig, SamplingParams
from npc_engine.runtime import LoadedModel, NpcEngine

_NUM_WARM_UPS = 2  # rounds that are not counted: first allocations, first use of kernels


@dataclass(frozen=True, slots=True)
class EditResult:
    """Medians over `num_rounds`; times in ms. `ratio` is full prefill over blocks."""

    model: str
    dtype: str
    context_tokens: int
    num_blocks: int
    final_tokens: int
    ttft_block_ms: float
    ttft_block_p95_ms: float
    ttft_full_ms: float
    encode_edited_block_ms: float
    edited_block_tokens: int
    ratio: float
    max_loop_blocked_ms: float
    num_rounds: int


async def bench_edit(
    loaded: LoadedModel,
    config: EngineConfig,
    *,
    context_tokens: int,
    num_lore: int,
    final_tokens: int,
    num_rounds: int,
    on_round: Callable[[int, int], None],
) -> EditResult:
    """Run the benchmark. `config.data_dir` should be empty; `on_round` gets (rounds done, rounds)."""
    tokens_of = loaded.model.tokenizer.encode_text
    words_per_lore = _words_for(lambda n: len(tokens_of(lore_text(0, n))), context_tokens // num_lore)
    world = synthetic_world(num_lore, words_per_lore)
    middle = f"/lore/entry{num_lore // 2:03}/text"
    template = loaded.model.template
    num_markup = len(template.user_open) + len(template.assistant_open)
    utterance = _utterance(lambda text: len(tokens_of(text)) + num_markup, final_tokens)
    block_ms, full_ms, encode_ms = [], [], []

    engine = NpcEngine(world, loaded, config)
    await engine.start()
    async with engine, LoopMonitor() as monitor:
        await engine.prepare("ada")
        await engine.save("start")
        for i in range(_NUM_WARM_UPS + num_rounds):
            await engine.load("start")
            text = lore_text(1000 + i, words_per_lore)
            edited_s = time.perf_counter()
            await engine.patch([{"op": "replace", "path": middle, "value": text}])
            ticked_s = time.perf_counter()
            await engine.prepare("ada")
            prepared_s = time.perf_counter()
            stream = engine.say("ada", utterance, sampling=SamplingParams(max_tokens=1))
            reply = await stream.result()
            full = await engine.full_prefill_ms(reply.request_id)
            assert ticked_s >= edited_s
            if i >= _NUM_WARM_UPS:
                block_ms.append(reply.stats.ttft_ms)
                full_ms.append(full)
                encode_ms.append((prepared_s - ticked_s) * 1000)
            on_round(i + 1, _NUM_WARM_UPS + num_rounds)
        views = await engine.layout("ada")
        edited = next(view for view in views if view.entity == f"lore/entry{num_lore // 2:03}")
        info = engine.model_info
    return EditResult(
        model=info.name,
        dtype=info.dtype,
        context_tokens=reply.stats.num_prompt_tokens - reply.stats.num_encoded_tokens,
        num_blocks=len(views) - 1,  # the turn that was just said is not part of the prompt
        final_tokens=reply.stats.num_encoded_tokens,
        ttft_block_ms=statistics.median(block_ms),
        ttft_block_p95_ms=sorted(block_ms)[round(0.95 * (len(block_ms) - 1))],
        ttft_full_ms=statistics.median(full_ms),
        encode_edited_block_ms=statistics.median(encode_ms),
        edited_block_tokens=edited.num_tokens,
        ratio=statistics.median(full_ms) / statistics.median(block_ms),
        max_loop_blocked_ms=monitor.max_blocked_ms,
        num_rounds=num_rounds,
    )


def _words_for(num_tokens: Callable[[int], int], target: int) -> int:
    """The number of words that comes to about `target` tokens."""
    return max(10, round(100 * target / num_tokens(100)))


def _utterance(num_tokens: Callable[[str], int], target: int) -> str:
    """A question that makes a final block of exactly `target` tokens."""
    text = "Tell me"
    while num_tokens(text + " more") < target - 1:
        text += " more"
    for ending in (".", "?", " now.", " please.", " more."):
        if num_tokens(text + ending) == target:
            return text + ending
    return text + " more"
