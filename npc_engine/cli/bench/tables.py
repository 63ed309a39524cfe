"""Results of benchmarks as tables, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from npc_engine.cli.bench.decode import DecodeResult
    from npc_engine.cli.bench.edit import EditResult
    from npc_engine.cli.bench.load import LoadResult
    from npc_engine.cli.bench.tick import TickResult
    from npc_engine.cli.bench.ttft import TtftResult


def show_decode(result: DecodeResult, screen: Console) -> None:
    title = f"Tokens per second · {result.model}, {result.dtype} · {result.device}, attention {result.attention}"
    table = Table(title=title)
    for name in ("NPCs", "tokens/s", "each", "step, ms", "p95", "KV, MiB", "unshared"):
        table.add_column(name, justify="right")
    for row in result.rows:
        figures = (row.tokens_per_s, row.tokens_per_s_each, row.step_ms, row.step_p95_ms, row.kv_mb, row.kv_mb_unshared)
        table.add_row(str(row.num_npcs), *(f"{value:,.1f}" for value in figures))
    screen.print(table)
    screen.print(
        f"{result.context_tokens:,} tokens of context each, {result.shared_tokens:,} of them shared by all; medians "
        f"over a reply of {result.reply_tokens} tokens"
    )


def show_ttft(result: TtftResult, screen: Console) -> None:
    title = f"Time to first token, ms · {result.model}, {result.dtype} · {result.device}, attention {result.attention}"
    table = Table(title=title)
    columns = ("context", "blocks", "TTFT", "p95", "floor", "× floor", "full", "copied", "prefix, best", "paper")
    for name in columns:
        table.add_column(name, justify="right")
    for row in result.rows:
        times = (row.ttft_ms, row.ttft_p95_ms, row.floor_ms, row.ratio_to_floor, row.full_ms, row.copied_ms)
        cells = (f"{value:.2f}" for value in (*times, row.prefix_best_ms))
        table.add_row(f"{row.context_tokens:,}", str(row.num_blocks), *cells, str(row.paper_ms or ""))
    screen.print(table)
    screen.print(
        f"medians of {result.num_rounds}, final block {result.final_tokens} tokens; floor: {result.weight_gb:.2f} GB "
        f"of weights and the context's keys and values, once, at {result.bandwidth_gb_s:,.0f} GB/s; kernels and graphs "
        f"took {result.prepare_s:.1f} s at the start"
    )


def show_edit(result: EditResult, screen: Console) -> None:
    table = Table(title=f"One block edited, then a question · {result.model}, {result.dtype}")
    table.add_column("")
    table.add_column("ms", justify="right")
    table.add_row(
        f"TTFT over blocks ({result.num_blocks} blocks, {result.context_tokens} tokens cached)",
        f"{result.ttft_block_ms:.1f}",
    )
    table.add_row("  95th percentile", f"{result.ttft_block_p95_ms:.1f}")
    table.add_row(
        f"  encoding the edited block, before the question ({result.edited_block_tokens} tokens)",
        f"{result.encode_edited_block_ms:.1f}",
    )
    table.add_row("TTFT with a full prefill of the same prompt", f"{result.ttft_full_ms:.1f}")
    table.add_row("event loop blocked, longest", f"{result.max_loop_blocked_ms:.1f}")
    screen.print(table)
    screen.print(
        f"{result.ratio:.1f} times faster; medians of {result.num_rounds}, final block {result.final_tokens} tokens"
    )


def show_tick(result: TickResult, screen: Console) -> None:
    table = Table(title=f"{result.model}, {result.dtype} · {result.device}, attention {result.attention}")
    table.add_column("")
    table.add_column("ms", justify="right")
    what = f"{result.num_changed} of {result.num_blocks} blocks change → first token of a decision"
    table.add_row(f"{what} ({result.context_tokens:,} tokens)", f"{result.decision_ms:.1f}")
    table.add_row("the same, p95", f"{result.decision_p95_ms:.1f}")
    table.add_row("the whole prompt, full attention", f"{result.full_ms:.1f}")
    table.add_row("32 changed blocks of 128 tokens, encoded as one change", f"{result.encode_ms:.1f}")
    table.add_row(f"as many tokens, dense ({result.encode_ratio:.2f} ×)", f"{result.dense_ms:.1f}")
    screen.print(table)
    screen.print(f"medians of {result.num_rounds}")


def show_load(result: LoadResult, screen: Console) -> None:
    title = f"Utterances at random · {result.model}, {result.dtype} · {result.device}, attention {result.attention}"
    table = Table(title=title)
    for name in ("utterances/s", "utterances", "TTFT p50, ms", "p95", "p99", "tokens/s", "talking"):
        table.add_column(name, justify="right")
    for row in result.rows:
        times = (row.ttft_p50_ms, row.ttft_p95_ms, row.ttft_p99_ms, row.tokens_per_s, row.mean_talking)
        table.add_row(f"{row.rate:g}", str(row.num_utterances), *(f"{value:,.1f}" for value in times))
    screen.print(table)
    screen.print(
        f"{result.num_npcs} NPCs, {result.context_tokens:,} tokens of context each, {result.shared_tokens:,} shared by "
        f"all, replies of {result.reply_tokens} tokens; keys and values {result.kv_mb:,.0f} MiB, unshared "
        f"{result.kv_mb_unshared:,.0f} MiB"
    )
