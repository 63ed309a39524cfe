"""``npc-engine serve``, in a process of its own."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from game_bridge import ConnectError, connect
from tests.cli.cli_harness import NINESTEP, last_json, spawn, succeed

Server = Callable[..., tuple["subprocess.Popen[str]", dict[str, object]]]


@pytest.fixture
def start(tiny: tuple[str, ...], request: pytest.FixtureRequest) -> Server:
    """Starts a server and waits until it says where it listens."""

    def start(*options: object) -> tuple[subprocess.Popen[str], dict[str, object]]:
        process = spawn("serve", NINESTEP, "--port", 0, "--json", *options, *tiny)

        def stop() -> None:
            process.kill()
            process.communicate()

        request.addfinalizer(stop)
        assert process.stdout is not None
        return process, json.loads(process.stdout.readline())

    return start


async def test_a_client_talks_until_the_server_is_told_to_stop(start: Server) -> None:
    """The first line says where to connect; SIGTERM closes, and the last line says so."""
    process, listening = start()
    assert listening["world"] == "ninestep"
    async with connect(str(listening["url"])) as bridge:
        reply = await bridge.say("wick", "Hello!").result()
        assert reply.npc == "wick"
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert last_json(stdout)["ended_by"] == "SIGTERM"
    assert "Traceback" not in stderr


async def test_a_token(start: Server, tmp_path: Path) -> None:
    """Who does not show the file's secret is refused; Ctrl-C ends the server like SIGTERM."""
    path = tmp_path / "token"
    path.write_text("open sesame\n")
    process, listening = start("--token-file", path)
    assert listening["needs_token"] is True
    with pytest.raises(ConnectError):
        async with connect(str(listening["url"]), token="open barley"):
            pass
    async with connect(str(listening["url"]), token="open sesame") as bridge:
        assert {npc.id for npc in bridge.npcs} >= {"wick", "odile"}
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert last_json(stdout)["ended_by"] == "SIGINT"


async def test_autosave(start: Server, tiny: tuple[str, ...]) -> None:
    """What happened is in the save that closing makes; another process goes on from it."""
    process, listening = start("--autosave", "nightly")
    async with connect(str(listening["url"])) as bridge:
        await bridge.patch([{"op": "replace", "path": "/quests/water/stage", "value": "mended"}])
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 0
    result = succeed("play", NINESTEP, "--npc", "wick", "--load", "nightly", *tiny, stdin="/saves\n/blocks\n")
    assert "nightly" in result.stdout
    process, listening = start("--load", "nightly")
    assert listening["world"] == "ninestep"
