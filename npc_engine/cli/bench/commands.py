"""The benchmarks' command lines."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress as Bar
from rich.table import Table

from npc_engine.cli.bench.quality import quality
from npc_engine.cli.options import EngineOptions, JsonOption, takes_engine_options
from npc_engine.cli.output import console, print_json
from npc_engine.cli.progress import LoadingBar

if TYPE_CHECKING:
    from npc_engine.cli.bench.edit import EditResult

app = typer.Typer(no_args_is_help=True, help="Measure the engine on this machine, baselines beside it.")


@app.command()
@takes_engine_options
def edit(
    *,
    context_tokens: Annotated[int, typer.Option(min=100, help="Tokens in front of the final block, about.")] = 2000,
    blocks: Annotated[int, typer.Option(min=2, max=999, help="Blocks of lore that they lie in.")] = 14,
    final_tokens: Annotated[int, typer.Option(min=20, help="Tokens of the final block.")] = 50,
    rounds: Annotated[int, typer.Option(min=1, help="Measurements; the medians are reported.")] = 10,
    as_json: JsonOption = False,
    options: EngineOptions,
) -> None:
    """One block in the middle of the prompt was edited: time to first token, against a full prefill.

    The edit goes through a patch and a tick; the baseline is the same prompt computed with full attention in the same
    process. Blocks and saves of the benchmark live in a temporary folder.
    """
    from npc_engine.cli.bench.edit import bench_edit, to_json
    from npc_engine.runtime import load

    screen = console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="npc-engine-bench-") as folder:
        config = replace(options.config(), data_dir=Path(folder))
        with LoadingBar(screen) as bar:
            loaded = load(config, bar.show)
        with Bar(console=screen, transient=True, disable=not screen.is_terminal) as progress:
            task = progress.add_task("editing and asking")
            result = asyncio.run(
                bench_edit(
                    loaded,
                    config,
                    context_tokens=context_tokens,
                    num_lore=blocks,
                    final_tokens=final_tokens,
                    num_rounds=rounds,
                    on_round=lambda done, total: progress.update(task, completed=done, total=total),
                )
            )
    if as_json:
        print_json(to_json(result))
    else:
        _show(result, console())


def _show(result: EditResult, screen: Console) -> None:
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


app.command()(quality)
