"""The benchmarks' command lines."""

from __future__ import annotations

import asyncio
import math
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.console import Console
from rich.progress import Progress as Bar

from npc_engine.cli.bench.quality import quality
from npc_engine.cli.bench.tables import show_decode, show_edit, show_load, show_tick, show_ttft
from npc_engine.cli.options import EngineOptions, JsonOption, takes_engine_options
from npc_engine.cli.output import console, print_json, rounded
from npc_engine.cli.progress import LoadingBar
from npc_engine.errors import ConfigError

if TYPE_CHECKING:
    from npc_engine.config import EngineConfig
    from npc_engine.inference import Network

ShapeOption = Annotated[
    str | None,
    typer.Option(
        "--config",
        metavar="NAME",
        help="Random weights of a well-known shape instead of --model: llama-3.1-8b, llama-3.2-1b, smollm2-135m.",
    ),
]

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
    from npc_engine.cli.bench.edit import bench_edit
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
        print_json(rounded(asdict(result)))
    else:
        show_edit(result, console())


@app.command()
@takes_engine_options
def ttft(
    *,
    shape: ShapeOption = None,
    lengths: Annotated[str, typer.Option(help="Tokens of context, comma-separated.")] = "0,512,1024,2048,4096",
    block_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a block.")] = 160,
    final_tokens: Annotated[int, typer.Option(min=1, help="Tokens of the final block.")] = 50,
    rounds: Annotated[int, typer.Option(min=1, help="Measurements; the medians are reported.")] = 10,
    as_json: JsonOption = False,
    options: EngineOptions,
) -> None:
    """Time to the first token by context length, against what the memory's bandwidth allows.

    Beside it, in the same run: a full prefill, copying the blocks for every request as the paper does, a prefix cache
    whose last block has changed (where its first one has, that is a full prefill), and the paper's own figures.
    """
    from npc_engine.cli.bench.ttft import bench_ttft

    config = options.config()
    wanted = _parse_numbers(lengths, "--lengths", int)
    screen = console(stderr=True)
    network = _network(shape, config, screen)
    with Bar(console=screen, transient=True, disable=not screen.is_terminal) as progress:
        task = progress.add_task("asking", total=None)
        result = bench_ttft(
            network,
            config.attention,
            wanted,
            block_tokens=block_tokens,
            final_tokens=final_tokens,
            num_rounds=rounds,
            on_round=lambda length: progress.update(task, description=f"{length:,} tokens of context"),
        )
    if as_json:
        print_json(rounded(asdict(result)))
    else:
        show_ttft(result, console())


@app.command()
@takes_engine_options
def decode(
    *,
    shape: ShapeOption = None,
    npcs: Annotated[str, typer.Option(help="How many talk at once, comma-separated.")] = "1,8",
    context_tokens: Annotated[int, typer.Option(min=1, help="Tokens of each NPC's context.")] = 2000,
    shared_tokens: Annotated[int, typer.Option(min=0, help="How many of them all NPCs share.")] = 1000,
    block_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a block.")] = 160,
    tokens: Annotated[int, typer.Option(min=4, help="Tokens of a reply.")] = 32,
    as_json: JsonOption = False,
    options: EngineOptions,
) -> None:
    """Tokens per second of NPCs that talk at once, each over a context of its own, part of which is shared."""
    from npc_engine.cli.bench.decode import bench_decode

    config = options.config()
    wanted = _parse_numbers(npcs, "--npcs", int)
    if 0 in wanted or shared_tokens > context_tokens:
        raise ConfigError("--npcs has to be at least 1, and --shared-tokens at most --context-tokens")
    screen = console(stderr=True)
    network = _network(shape, config, screen)
    with Bar(console=screen, transient=True, disable=not screen.is_terminal) as progress:
        task = progress.add_task("talking", total=len(wanted))
        result = bench_decode(
            network,
            config.attention,
            wanted,
            context_tokens=context_tokens,
            shared_tokens=shared_tokens,
            block_tokens=block_tokens,
            reply_tokens=tokens,
            on_row=lambda number: progress.update(task, advance=1, description=f"{number} NPCs talking"),
        )
    if as_json:
        print_json(rounded(asdict(result)))
    else:
        show_decode(result, console())


@app.command()
@takes_engine_options
def tick(
    *,
    shape: ShapeOption = None,
    blocks: Annotated[int, typer.Option(min=1, help="Blocks of the NPC.")] = 300,
    changed: Annotated[int, typer.Option(min=1, help="How many of them change in a tick.")] = 20,
    block_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a block.")] = 20,
    final_tokens: Annotated[int, typer.Option(min=1, help="Tokens of the final block.")] = 50,
    rounds: Annotated[int, typer.Option(min=1, help="Measurements; the medians are reported.")] = 5,
    as_json: JsonOption = False,
    options: EngineOptions,
) -> None:
    """Time from a tick's changes to an NPC's first token.

    Beside it: changed blocks encoded together, against a dense prefill of as many tokens.
    """
    from npc_engine.cli.bench.tick import bench_tick

    config = options.config()
    if changed > blocks:
        raise ConfigError(f"--changed {changed}: there are {blocks} blocks (--blocks)")
    screen = console(stderr=True)
    network = _network(shape, config, screen)
    with Bar(console=screen, transient=True, disable=not screen.is_terminal) as progress:
        task = progress.add_task("ticking", total=rounds)
        result = bench_tick(
            network,
            config.attention,
            num_blocks=blocks,
            num_changed=changed,
            block_tokens=block_tokens,
            final_tokens=final_tokens,
            num_rounds=rounds,
            on_round=lambda number: progress.update(task, advance=1),
        )
    if as_json:
        print_json(rounded(asdict(result)))
    else:
        show_tick(result, console())


@app.command()
@takes_engine_options
def load(
    *,
    shape: ShapeOption = None,
    rates: Annotated[str, typer.Option(help="Utterances per second, comma-separated.")] = "1,2",
    npcs: Annotated[int, typer.Option(min=1, help="NPCs that can be spoken to.")] = 8,
    context_tokens: Annotated[int, typer.Option(min=1, help="Tokens of each NPC's context.")] = 2000,
    shared_tokens: Annotated[int, typer.Option(min=0, help="How many of them all NPCs share.")] = 1000,
    block_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a block.")] = 160,
    final_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an utterance.")] = 20,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of a reply.")] = 32,
    seconds: Annotated[float, typer.Option(min=0.1, help="For how long utterances arrive, at each rate.")] = 10.0,
    as_json: JsonOption = False,
    options: EngineOptions,
) -> None:
    """Waiting times of players whose utterances arrive at random, and tokens per second in all."""
    from npc_engine.cli.bench.load import bench_load

    config = options.config()
    wanted = _parse_numbers(rates, "--rates", float)
    if 0 in wanted or shared_tokens > context_tokens:
        raise ConfigError("--rates have to be above 0, and --shared-tokens at most --context-tokens")
    screen = console(stderr=True)
    network = _network(shape, config, screen)
    with Bar(console=screen, transient=True, disable=not screen.is_terminal) as progress:
        task = progress.add_task("talking", total=len(wanted))
        result = bench_load(
            network,
            config.attention,
            wanted,
            num_npcs=npcs,
            context_tokens=context_tokens,
            shared_tokens=shared_tokens,
            block_tokens=block_tokens,
            final_tokens=final_tokens,
            reply_tokens=tokens,
            seconds=seconds,
            on_row=lambda rate: progress.update(task, advance=1, description=f"{rate:g} utterances/s"),
        )
    if as_json:
        print_json(rounded(asdict(result)))
    else:
        show_load(result, console())


def _network(shape: str | None, config: EngineConfig, screen: Console) -> Network:
    """What to measure: random weights of a shape, or the model."""
    from npc_engine.inference import random_network
    from npc_engine.runtime import load

    with LoadingBar(screen) as bar:
        if shape is None:
            return load(config, bar.show).model
        return random_network(
            shape, device=config.device, dtype=config.dtype, num_threads=config.num_threads, seed=config.seed
        )


N = TypeVar("N", int, float)


def _parse_numbers(text: str, option: str, kind: Callable[[str], N]) -> list[N]:
    try:
        numbers = [kind(each) for each in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(0 <= number < math.inf for number in numbers):
        example = "0.5,2" if kind is float else "0,512,4096"
        raise ConfigError(f"{option} {text}: numbers are expected, as in {example}")
    return numbers


app.command()(quality)
