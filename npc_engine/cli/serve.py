"""``npc-engine serve``: the bridge that games connect to."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from npc_engine.cli.options import EngineOptions, JsonOption, WorldArgument, takes_engine_options
from npc_engine.cli.output import console, console_for_people, print_json
from npc_engine.errors import UserError

if TYPE_CHECKING:
    from game_bridge import BridgeServer
    from npc_engine.config import EngineConfig
    from npc_engine.runtime import NpcEngine


@takes_engine_options
def serve(
    world: WorldArgument,
    *,
    host: Annotated[str, typer.Option("--host", help="Address to listen on; a public one needs a token.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0 takes a free one.")] = 8765,
    token_file: Annotated[
        Path | None,
        typer.Option(
            "--token-file",
            metavar="FILE",
            help="Holds the secret that clients must show.",
            show_default="no secret, this machine only",
        ),
    ] = None,
    load: Annotated[
        str | None, typer.Option("--load", metavar="NAME", help="Go on from this save.", show_default="a new game")
    ] = None,
    autosave: Annotated[
        str | None,
        typer.Option(
            "--autosave",
            metavar="NAME",
            help="Save under this name now and then, and at the end.",
            show_default="never",
        ),
    ] = None,
    autosave_s: Annotated[
        float, typer.Option("--autosave-every", metavar="SECONDS", min=1.0, help="Time between two such saves.")
    ] = 60.0,
    as_json: JsonOption = False,
    options: EngineOptions,
) -> None:
    """Serve a world to games over WebSockets, until Ctrl-C or SIGTERM.

    With --json a line tells url and port as soon as clients can connect, and another one ends the output.
    """
    from game_bridge.server import check_address

    config = options.config()
    token = _read_token(token_file)
    check_address(host, port, token)  # before the model is loaded
    asyncio.run(_serve(world, config, host, port, token, load, autosave, autosave_s, as_json))


async def _serve(
    world: str,
    config: EngineConfig,
    host: str,
    port: int,
    token: str | None,
    load: str | None,
    autosave: str | None,
    autosave_s: float,
    as_json: bool,
) -> None:
    from game_bridge import BridgeServer
    from npc_engine.cli.progress import LoadingBar
    from npc_engine.runtime import NpcEngine

    people = console_for_people(as_json=as_json)
    with LoadingBar(console(stderr=True)) as bar:
        engine = await NpcEngine.open(world, config, on_progress=bar.show)
    async with engine:
        if load is not None:
            await engine.load(load)
        # Ended in the opposite order: no signal is lost, the server closes before the last save, and before the engine.
        async with (
            _autosaving(engine, autosave, autosave_s),
            BridgeServer(engine, host=host, port=port, token=token, sampling=config.sampling) as server,
            _until_signalled() as signalled,
        ):
            for line in _how_to_connect(server, engine, with_token=token is not None):
                people.print(line, soft_wrap=True)
            if as_json:
                print_json(_describe(server, engine, with_token=token is not None))
            name = await signalled
            people.print(f"{name}: closing", style="dim")
        if as_json:
            print_json({"ended_by": name, "tick": engine.tick, "autosave": autosave})


@contextlib.asynccontextmanager
async def _autosaving(engine: NpcEngine, name: str | None, period_s: float) -> AsyncIterator[None]:
    """Save every `period_s` seconds, and at the end. A save that fails ends the serving."""
    if name is None:
        yield
        return

    async def save_forever() -> None:
        while True:
            await asyncio.sleep(period_s)
            await engine.save(name)

    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(save_forever(), name="npc-engine-autosave")
        try:
            yield
        finally:
            task.cancel()
    await engine.save(name)


@contextlib.asynccontextmanager
async def _until_signalled() -> AsyncIterator[asyncio.Future[str]]:
    """A future that gets the name of the first SIGINT or SIGTERM; the handlers that were there come back."""
    loop = asyncio.get_running_loop()
    signalled: asyncio.Future[str] = loop.create_future()

    def on_signal(number: int, _frame: object) -> None:
        loop.call_soon_threadsafe(resolve, signal.Signals(number).name)

    def resolve(name: str) -> None:
        if not signalled.done():
            signalled.set_result(name)

    # signal.signal, not the loop's handlers: those do not exist on Windows.
    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signalled
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _read_token(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        token = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise UserError(
            f"--token-file {path}: {error.strerror or error}; write a secret into a file and name it"
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"--token-file {path}: it is no UTF-8 text; write a secret into it") from None
    if not token:
        raise UserError(f"--token-file {path}: it is empty; write a secret into it")
    return token


def _how_to_connect(server: BridgeServer, engine: NpcEngine, *, with_token: bool) -> list[str]:
    token = ", token=TOKEN" if with_token else ""
    npc = next((each.id for each in engine.npcs()), "NPC")
    return [
        f"{engine.world_info.title} listens on {server.url} (subprotocols: {', '.join(_subprotocols())})",
        f'Python: async with game_bridge.connect("{server.url}"{token}) as bridge: '
        f'await bridge.say("{npc}", "Hello!").result()',
        "Ctrl-C ends it",
    ]


def _describe(server: BridgeServer, engine: NpcEngine, *, with_token: bool) -> dict[str, Any]:
    from game_bridge import PROTOCOL_VERSION

    model = engine.model_info
    return {
        "url": server.url,
        "port": server.port,
        "subprotocols": _subprotocols(),
        "protocol_version": PROTOCOL_VERSION,
        "needs_token": with_token,
        "world": engine.world_info.id,
        "model": model.name,
        "device": model.device,
        "dtype": model.dtype,
    }


def _subprotocols() -> list[str]:
    from game_bridge.codec import CODECS

    return list(CODECS)
