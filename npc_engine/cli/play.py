"""``npc-engine play``: talk to the NPCs of a world."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from npc_engine.cli.options import EngineOptions, JsonOption, WorldArgument, takes_engine_options
from npc_engine.cli.output import console, console_for_people, print_json, well_formed
from npc_engine.errors import UserError

if TYPE_CHECKING:
    from npc_engine.cli.talk import Talk
    from npc_engine.config import EngineConfig
    from npc_engine.runtime.recorder import Recorder
    from npc_engine.world import WorldState


@takes_engine_options
def play(
    world: WorldArgument,
    *,
    npc: Annotated[
        str | None, typer.Option("--npc", metavar="NAME", help="Whom to speak to, by name or id.", show_default="ask")
    ] = None,
    say: Annotated[
        list[str] | None,
        typer.Option(
            "--say", metavar="TEXT", help="Say this and leave; may be repeated.", show_default="talk in the terminal"
        ),
    ] = None,
    scenario: Annotated[
        Path | None,
        typer.Option(
            "--scenario", metavar="FILE", help="Play this YAML file and leave.", show_default="talk in the terminal"
        ),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Time a full prefill of every prompt, too, and end with a table.")
    ] = False,
    load: Annotated[
        str | None, typer.Option("--load", metavar="NAME", help="Go on from this save.", show_default="a new game")
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(
            "--record",
            metavar="FILE",
            help="Write the talk to this new file, for npc-engine replay; a folder gets a recording.jsonl.",
            show_default="don't",
        ),
    ] = None,
    player: Annotated[
        str, typer.Option("--player", metavar="ID", help="Who speaks; a new id joins the world.")
    ] = "player",
    as_json: JsonOption = False,
    options: EngineOptions,
) -> None:
    """Talk to the NPCs of a world.

    Speech is streamed; under every reply stand its latencies and how much of the prompt came from cached blocks.
    """
    from npc_engine.world import WorldState, load_world

    if scenario is not None and (say or npc is not None):
        raise UserError("--scenario names whom to speak to and what to say: leave out --npc and --say")
    if record is not None and load is not None:
        raise UserError("--record starts with a new game: leave out --load")
    state = None if load is not None else WorldState.start(load_world(world))
    opening = _Opening(world, load, record, player, compare, as_json)
    if scenario is not None:
        summary = _play_scenario(opening, scenario, state, options)
    else:
        config = options.config()
        _check_npc(npc, state, may_ask=not say and sys.stdin.isatty())
        if any(not text.strip() for text in say or ()):
            raise UserError("--say: the utterance is empty; say something")
        if say:
            summary = _play_lines(opening, config, str(npc), [well_formed(text) for text in say])
        else:
            summary = _converse(opening, config, npc)
    if as_json:
        print_json(summary)


@dataclass(frozen=True, slots=True)
class _Opening:
    """How a talk begins, whoever leads it. `load` names a save, `record` a file to be."""

    world: str
    load: str | None
    record: Path | None
    player: str
    compare: bool
    as_json: bool

    @property
    def people(self) -> Console:
        """Where people read."""
        return console_for_people(as_json=self.as_json)

    @contextmanager
    def recorder(self) -> Iterator[Recorder | None]:
        """What records the talk, if something does. A path that won't do fails here, before a model is loaded."""
        from npc_engine.runtime.recorder import recording_to

        with recording_to(self.record) as recorder:
            yield recorder
        if recorder is not None:
            self.people.print(Text(f"recorded to {recorder.path}", style="dim"), soft_wrap=True)


def _check_npc(npc: str | None, state: WorldState | None, *, may_ask: bool) -> None:
    """Find a wrong or missing ``--npc`` before the model is loaded. A save may have other NPCs: then it waits."""
    if npc is None and not may_ask:
        names = ""
        if state is not None:
            found = (f"{state.character(each).name} ({each.partition('/')[2]})" for each in state.npcs())
            names = f": {', '.join(found)}"
        raise UserError(f"--npc: name whom to speak to{names}")
    if npc is not None and state is not None:
        try:
            state.find_npc(npc)
        except UserError as error:
            raise UserError(f"--npc: {error}") from None


def _play_lines(opening: _Opening, config: EngineConfig, npc: str, texts: list[str]) -> dict[str, Any]:
    async def say_all(talk: Talk) -> None:
        for text in texts:
            talk.echo(text)
            await talk.say(npc, text)

    return _run(opening, config, say_all)


def _play_scenario(opening: _Opening, path: Path, state: WorldState | None, options: EngineOptions) -> dict[str, Any]:
    from npc_engine.cli.stage import perform
    from npc_engine.runtime.scenario import load_scenario, rehearse

    scenario = load_scenario(path)
    if state is not None:
        rehearse(scenario, state)
    return _run(
        replace(opening, player=scenario.player),
        options.config(scenario.sampling),
        lambda talk: perform(scenario, talk, opening.people),
    )


def _run(opening: _Opening, config: EngineConfig, act: Callable[[Talk], Awaitable[None]]) -> dict[str, Any]:
    """Open an engine, let `act` use it, close it; returns the JSON object."""
    from npc_engine.cli.progress import LoadingBar
    from npc_engine.cli.talk import Talk
    from npc_engine.runtime import NpcEngine

    async def run(recorder: Recorder | None) -> dict[str, Any]:
        with LoadingBar(console(stderr=True)) as bar:
            engine = await NpcEngine.open(opening.world, config, on_progress=bar.show, observer=recorder)
        async with engine:
            talk = Talk(engine, opening.people, player=opening.player, compare=opening.compare)
            if opening.load is not None:
                await talk.load(opening.load)
            await act(talk)
            return talk.finish()

    with opening.recorder() as recorder:
        return asyncio.run(run(recorder))


def _converse(opening: _Opening, config: EngineConfig, npc: str | None) -> dict[str, Any]:
    """Talk in the terminal; returns the JSON object."""
    from npc_engine.cli.loop_thread import LoopThread
    from npc_engine.cli.progress import LoadingBar
    from npc_engine.cli.talk import Talk
    from npc_engine.cli.terminal import Terminal
    from npc_engine.runtime import NpcEngine

    with opening.recorder() as recorder, LoopThread() as loop:
        with LoadingBar(console(stderr=True)) as bar:
            engine = loop.run(NpcEngine.open(opening.world, config, on_progress=bar.show, observer=recorder))
        try:
            people = opening.people
            talk = Talk(engine, people, player=opening.player, compare=opening.compare)
            if opening.load is not None:
                loop.run(talk.load(opening.load))
            Terminal(loop, talk, people).run(npc)
            return talk.finish()
        finally:
            loop.run(engine.close())
