"""``npc-engine replay``: read a recorded talk as it went, or prove that it comes out again."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress as Bar
from rich.text import Text

from npc_engine.cli.options import (
    DEFAULT_MODEL,
    CacheDirOption,
    DeviceOption,
    DTypeOption,
    JsonOption,
    ModelOption,
    cache_dir,
    parse_size,
)
from npc_engine.cli.output import console, console_for_people, print_json, printable
from npc_engine.cli.progress import LoadingBar

if TYPE_CHECKING:
    from npc_engine.config import EngineConfig
    from npc_engine.runtime.recording import Recording
    from npc_engine.runtime.recording_lines import RecordedReply
    from npc_engine.runtime.replay import Verification
    from npc_engine.runtime.transcript import Answer, Moment

DemoArgument = Annotated[
    Path, typer.Argument(metavar="DEMO", help="A demo's folder, or a recording.", show_default=False)
]
_VERIFY = "Verification"


def replay(
    demo: DemoArgument,
    verify: Annotated[
        bool, typer.Option("--verify", help="Replay it against the model and compare instead of showing it.")
    ] = False,
    speed: Annotated[float, typer.Option("--speed", min=0.01, help="How many times as fast as it was.")] = 1.0,
    fast: Annotated[bool, typer.Option("--fast", help="Don't wait at all.")] = False,
    step: Annotated[bool, typer.Option("--step", help="Wait for Enter before each step.")] = False,
    world: Annotated[
        Path | None,
        typer.Option(
            "--world",
            metavar="WORLD",
            help="Folder of the world.",
            show_default="../../worlds/NAME beside the demo",
            rich_help_panel=_VERIFY,
        ),
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(
            "--margin",
            min=0.0,
            help="How far a recorded token's logit may lie below the best one.",
            show_default="0.5",
            rich_help_panel=_VERIFY,
        ),
    ] = None,
    model: ModelOption = DEFAULT_MODEL,
    device: DeviceOption = "cpu",
    dtype: DTypeOption = None,
    cache_folder: CacheDirOption = None,
    max_block_memory: Annotated[
        int,
        typer.Option(
            "--max-block-memory",
            metavar="SIZE",
            parser=parse_size,
            help="Blocks in memory.",
            show_default="2G",
            rich_help_panel=_VERIFY,
        ),
    ] = 2 << 30,
    as_json: JsonOption = False,
) -> None:
    """Show a recorded talk in its own time; with --verify, prove that world, blocks and replies come out again."""
    from npc_engine.config import EngineConfig
    from npc_engine.runtime.recording import read_recording

    recording = read_recording(demo)
    people = console_for_people(as_json=as_json)
    if recording.damage is not None:
        people.print(Text(f"note: {recording.damage}", style="yellow"), soft_wrap=True)
    if verify:
        config = EngineConfig(
            model=model,
            device=device,
            dtype=dtype,
            cache_dir=cache_dir(cache_folder),
            max_block_memory=max_block_memory,
        )
        summary = _verify(recording, demo, world, config, margin, people, as_json=as_json)
    else:
        from npc_engine.runtime.transcript import transcript

        Player(people, Pace(speed=speed, is_fast=fast, is_step=step)).play(transcript(recording))
        summary = _summary(recording, demo, None)
    if as_json:
        print_json(summary)


def _verify(
    recording: Recording,
    demo: Path,
    world: Path | None,
    config: EngineConfig,
    margin: float | None,
    people: Console,
    *,
    as_json: bool,
) -> dict[str, Any]:
    from npc_engine.errors import RecordingError
    from npc_engine.runtime import load
    from npc_engine.runtime.replay import DEFAULT_MARGIN, check_world, find_world, verify
    from npc_engine.world import load_world

    limit = DEFAULT_MARGIN if margin is None else margin
    started_s = time.monotonic()
    try:
        loaded_world = load_world(find_world(recording) if world is None else world)
        check_world(recording, loaded_world)  # before a model is fetched for nothing
        with LoadingBar(console(stderr=True)) as bar:
            loaded = load(config, bar.show)
        progress_console = console(stderr=True)
        with Bar(console=progress_console, transient=True, disable=not progress_console.is_terminal) as progress:
            task = progress.add_task("verifying", total=None)
            verification = verify(
                recording,
                loaded_world,
                loaded.model,
                config,
                margin_limit=limit,
                on_progress=lambda done, total: progress.update(task, completed=done, total=total),
            )
    except RecordingError as error:
        if as_json:
            print_json({**_summary(recording, demo, None), "margin_limit": limit, "difference": str(error)})
        raise
    seconds = time.monotonic() - started_s
    people.print(Text(_verdict(verification, seconds)), soft_wrap=True)
    return {
        **_summary(recording, demo, verification),
        "dtype": loaded.model.identity.dtype,
        "device": config.device,
        "seconds": round(seconds, 3),
    }


def _summary(recording: Recording, demo: Path, verification: Verification | None) -> dict[str, Any]:
    replies = list(recording.replies)
    header = recording.header
    return {
        "demo": demo.resolve().name,
        "verified": verification is not None,
        "world": header.world.name,
        "model": header.model.name,
        "recorded_dtype": header.model.dtype,
        "num_ticks": verification.num_ticks if verification else len(list(recording.ticks)),
        "num_replies": verification.num_replies if verification else len(replies),
        "num_unchecked_replies": verification.num_unchecked_replies if verification else len(replies),
        "num_tokens": verification.num_tokens if verification else sum(len(r.sampled_token_ids) for r in replies),
        "worst_margin": verification.worst_margin if verification else None,
        "margin_limit": verification.margin_limit if verification else None,
        "damage": recording.damage,
    }


def _verdict(verification: Verification, seconds: float) -> str:
    text = (
        f"verified: {verification.num_ticks:,} ticks, {verification.num_replies:,} replies, "
        f"{verification.num_tokens:,} tokens, worst margin {verification.worst_margin:.3f} "
        f"(limit {verification.margin_limit:.3f}), {seconds:.1f} s"
    )
    if verification.num_unchecked_replies:
        text += (
            f"; {verification.num_unchecked_replies:,} replies were sampled at a temperature: their blocks were "
            "compared, their tokens can't be"
        )
    return text


class Pace:
    """When the next thing is shown. Waits for Enter where `is_step`, not at all where `is_fast`."""

    def __init__(
        self,
        *,
        speed: float = 1.0,
        is_fast: bool = False,
        is_step: bool = False,
        now_s: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        read_line: Callable[[], str] = input,
    ) -> None:
        self._speed = speed
        self._is_fast = is_fast
        self._is_step = is_step
        self._now_s = now_s
        self._sleep = sleep
        self._read_line = read_line
        self._started_s = now_s()

    def step(self, at_ms: float) -> None:
        """Wait for what the recording has at `at_ms`."""
        if self._is_step:
            try:
                self._read_line()
            except EOFError:  # nobody is there to press Enter: show the rest
                self._is_step, self._is_fast = False, True
            # However long that took, what follows keeps its distance.
            self._started_s = self._now_s() - at_ms / 1000 / self._speed
        else:
            self.wait_until(at_ms)

    def wait_until(self, at_ms: float) -> None:
        """Wait until the recording is at `at_ms`, within one step."""
        remaining_s = self._started_s + at_ms / 1000 / self._speed - self._now_s()
        if not self._is_fast and remaining_s > 0:
            self._sleep(remaining_s)


class Player:
    """Shows a transcript. Where two NPCs spoke at once, one is shown after the other."""

    def __init__(self, console: Console, pace: Pace) -> None:
        self._console = console
        self._pace = pace

    def play(self, moments: list[Moment]) -> None:
        """Show all of it."""
        from npc_engine.runtime.transcript import Answer, Event, Utterance

        for moment in moments:
            self._pace.step(moment.at_ms)
            match moment:
                case Utterance(_, player, npc, text):
                    self._console.print(
                        Text.assemble((f"{printable(player)} to {printable(npc)}: ", "bold"), printable(text)),
                        soft_wrap=True,
                    )
                case Event(_, text):
                    self._console.print(Text(f"· {printable(text)}", style="yellow"), soft_wrap=True)
                case Answer():
                    self._answer(moment)

    def _answer(self, answer: Answer) -> None:
        self._console.print(Text(f"{printable(answer.npc)}: ", style="bold cyan"), end="")
        for at_ms, text in answer.pieces():
            self._pace.wait_until(at_ms)
            self._console.print(Text(printable(text)), end="", soft_wrap=True)
            self._console.file.flush()
        self._console.print()
        self._console.print(Text(_figures(answer.reply), style="dim"), soft_wrap=True)


def _figures(reply: RecordedReply) -> str:
    """One line of latencies and counts, as they were."""
    parts = [
        f"first token after {reply.ttft_ms:,.0f} ms",
        f"{reply.num_prompt_tokens:,} tokens in the prompt",
        f"{reply.num_cached_tokens:,} from cache",
        f"{reply.num_encoded_tokens:,} encoded",
        f"{reply.num_reply_tokens:,} in the reply after {reply.total_ms:,.0f} ms",
    ]
    if reply.finish_reason != "stop":
        parts.append({"length": "cut off at the limit", "cancelled": "cancelled"}[reply.finish_reason])
    return "  " + " · ".join(parts)
