"""Replies over blocks beside full prefills of the same prompts."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.table import Table

if TYPE_CHECKING:
    from npc_engine.runtime import Reply


class Comparison(NamedTuple):
    """What one reply took, and what computing its whole prompt takes in the same process."""

    reply: Reply
    full_prefill_ms: float

    @property
    def ratio(self) -> float:
        """How many times longer the full prefill takes than the first token over blocks."""
        return self.full_prefill_ms / max(self.reply.stats.ttft_ms, 1e-9)


def comparison_table(comparisons: Sequence[Comparison]) -> Table:
    """One row a turn; the last row holds the median of each column."""
    table = Table(title="Time to first token: over blocks, and with a full prefill of the same prompt", min_width=80)
    table.add_column("turn", justify="right")
    table.add_column("NPC")
    for name in ("prompt tokens", "from cache", "encoded", "TTFT, blocks", "TTFT, full prefill", "ratio"):
        table.add_column(name, justify="right")
    for turn, (reply, full_prefill_ms) in enumerate(comparisons, start=1):
        stats = reply.stats
        table.add_row(
            str(turn),
            reply.npc,
            *_cells(
                stats.num_prompt_tokens,
                stats.num_cached_tokens,
                stats.num_encoded_tokens,
                stats.ttft_ms,
                full_prefill_ms,
                comparisons[turn - 1].ratio,
            ),
            end_section=turn == len(comparisons),
        )
    if comparisons:
        medians = median_figures(comparisons)
        table.add_row("", "median", *_cells(*medians.values()), style="bold")
    return table


def median_figures(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """The median of each column by itself."""
    stats = [each.reply.stats for each in comparisons]
    return {
        "num_prompt_tokens": statistics.median(each.num_prompt_tokens for each in stats),
        "num_cached_tokens": statistics.median(each.num_cached_tokens for each in stats),
        "num_encoded_tokens": statistics.median(each.num_encoded_tokens for each in stats),
        "ttft_ms": statistics.median(each.ttft_ms for each in stats),
        "full_prefill_ms": statistics.median(each.full_prefill_ms for each in comparisons),
        "ratio": statistics.median(each.ratio for each in comparisons),
    }


def _cells(
    num_prompt: float, num_cached: float, num_encoded: float, ttft_ms: float, full_ms: float, ratio: float
) -> tuple[str, ...]:
    counts = (f"{count:,.0f}" for count in (num_prompt, num_cached, num_encoded))
    return (*counts, f"{ttft_ms:,.1f} ms", f"{full_ms:,.1f} ms", f"{ratio:,.1f} x")
