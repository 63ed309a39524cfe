"""``npc-engine bench quality``: what NPCs say from blocks, against full attention and other ways."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table

from npc_engine.cli.options import EngineOptions, JsonOption, takes_engine_options
from npc_engine.cli.output import check_writable, console, console_for_people, print_json
from npc_engine.cli.progress import LoadingBar
from npc_engine.errors import ConfigError

if TYPE_CHECKING:
    from npc_engine.tuning.quality import QualityResult
    from npc_engine.tuning.scenes import Scene

_BAR_WIDTH = 50


@takes_engine_options
def quality(
    *,
    scenes: Annotated[Path, typer.Option("--scenes", metavar="FILE", help="JSON Lines, one scene a line.")],
    modes: Annotated[
        str,
        typer.Option(
            "--modes",
            help="Comma-separated: full, block, block-no-header, no-position, prompt-cache, "
            "superposition, own-sheet, balanced, group-K, relink-K, relink-P%, ape, ape-TEMPERATURE-SCALE.",
        ),
    ] = "full,block,block-no-header,no-position,prompt-cache,superposition",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first scenes.")] = None,
    blocks: Annotated[
        int | None, typer.Option(min=1, help="Add blocks of other scenes until each scene has about so many.")
    ] = None,
    parallel: Annotated[int, typer.Option(min=1, help="Conversations at a time.")] = 16,
    replies: Annotated[
        bool, typer.Option(help="Play the conversations; without, only the reference replies are scored: faster.")
    ] = True,
    transcripts: Annotated[
        Path | None, typer.Option("--transcripts", metavar="FILE", help="Write every turn there, as JSON Lines.")
    ] = None,
    as_json: JsonOption = False,
    options: EngineOptions,
) -> None:
    """Play scenes as conversations, greedily, and judge every reply by the scene's patterns.

    Beside the accuracy with its 95 % interval stand the likelihood of the scenes' reference replies (nats per token),
    how far a mode's choices are from full attention's (KL divergence, nats per token), and the time to the first token.
    """
    from npc_engine.runtime import load
    from npc_engine.tuning.quality import evaluate, parse_mode, write_transcripts
    from npc_engine.tuning.scenes import load_scenes

    parsed = [parse_mode(name.strip()) for name in modes.split(",")]
    all_scenes = load_scenes(scenes)
    if transcripts is not None:
        check_writable(transcripts, "--transcripts")  # before minutes of work, not after
    loaded_scenes = all_scenes[:limit]
    if blocks is not None:
        loaded_scenes = tuple(_crowded(scene, all_scenes, blocks) for scene in loaded_scenes)
    config = options.config()
    screen = console(stderr=True)
    with LoadingBar(screen) as loading:
        loaded = load(config, loading.show)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bar(*columns, console=screen, transient=True, disable=not screen.is_terminal) as bar:
        task = bar.add_task("playing")
        shown: set[str] = set()

        def on_progress(stage: str, done: int, total: int) -> None:
            bar.update(task, description=stage, completed=done, total=total)
            if not screen.is_terminal and stage not in shown:  # a log gets one line per stage
                shown.add(stage)
                screen.print(f"playing {stage}")

        result = evaluate(
            loaded,
            loaded_scenes,
            parsed,
            config,
            parallel=parallel,
            plays=replies,
            on_progress=on_progress,
        )
    if transcripts is not None:
        write_transcripts(transcripts, result)
    show(result, console_for_people(as_json=as_json))
    if as_json:
        print_json(result.to_json())


def _crowded(scene: Scene, others: Sequence[Scene], num_blocks: int) -> Scene:
    """The scene among blocks of others, the same ones every time."""
    from npc_engine.tuning.augment import with_distractors

    rng = random.Random(scene.id)
    pool = [other for other in others if other.id != scene.id]
    while (missing := num_blocks - len(scene.blocks)) > 0:
        crowded = with_distractors(scene, rng.sample(pool, len(pool)), rng, missing)  # one block of each
        if len(crowded.blocks) == len(scene.blocks):
            raise ConfigError(f"--blocks {num_blocks}: the file has {len(scene.blocks)} blocks that go with {scene.id}")
        scene = crowded
    return scene


def show(result: QualityResult, screen: Console) -> None:
    """A table of modes and kinds, and a bar chart."""
    kinds = list(next(iter(result.modes.values())).by_kind())
    title = f"{result.model}, adapter {result.adapter} · {result.num_scenes} scenes · {result.device}, {result.dtype}"
    table = Table(title=title)
    for name in ("%", *result.modes):
        table.add_column(name, justify="left" if name == "%" else "right")
    rows = {"all": [mode.overall for mode in result.modes.values()]}
    rows["facts"] = [mode.facts for mode in result.modes.values()]
    rows |= {str(kind): [mode.by_kind()[kind] for mode in result.modes.values()] for kind in kinds}
    for name, shares in rows.items():
        cells = (f"{100 * share.accuracy:.1f}" if share.num_turns else "" for share in shares)
        if shares[0].num_turns:
            table.add_row(f"{name} ({shares[0].num_turns})", *cells)
    table.add_section()
    for name, attribute in (
        ("answer, nats", "answer_nll"),
        ("KL to full, nats", "kl_to_full"),
        ("TTFT, ms", "ttft_ms"),
    ):
        digits = 1 if attribute == "ttft_ms" else 3
        table.add_row(name, *(f"{getattr(mode, attribute):.{digits}f}" for mode in result.modes.values()))
    screen.print(table)
    for name, mode in result.modes.items():
        if not mode.turns:
            continue
        low, high = mode.overall.interval
        bar = "█" * round(_BAR_WIDTH * mode.overall.accuracy)
        screen.print(
            f"{name:16} {bar:{_BAR_WIDTH}} {100 * mode.overall.accuracy:5.1f} [{100 * low:.1f}, {100 * high:.1f}]"
        )
    if any(mode.turns for mode in result.modes.values()):
        screen.print("all: turns whose reply passes, with 95 % intervals; facts: world, location, sheet and memory")
