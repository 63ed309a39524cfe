"""``npc-engine replay``: the transcript in its own time, and the verdict for people and programs."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from npc_engine.cli.replay import Pace, Player, replay
from npc_engine.errors import RecordingError
from npc_engine.runtime.recording import read_recording
from npc_engine.runtime.transcript import transcript
from tests.runtime import recording_builders as builders

app = typer.Typer()
app.command()(replay)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``demos/mill`` with its world beside the demos and its model in ``checkpoint-0``."""
    root = tmp_path_factory.mktemp("root")
    builders.write_world(root)
    folder = root / "demos" / "first"
    folder.mkdir(parents=True)
    builders.record(root, folder / "recording.jsonl", builders.conversation)
    builders.write_world(root / "worlds")
    return folder


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(each) for each in arguments])


def model_options(demo: Path) -> list[str]:
    root = demo.parent.parent
    return ["--model", str(root / "checkpoint-0"), "--cache-dir", str(root / "cache"), "--dtype", "float32"]


def test_shows_the_talk_without_a_model(demo: Path) -> None:
    result = run(demo, "--fast")
    assert result.exit_code == 0, result.output
    assert "Rowan to Anna Reed: Who is there?" in result.stdout
    assert "places/yard/conditions/wheel = The wheel turns." in result.stdout
    assert "first token after" in result.stdout
    assert "cancelled" in result.stdout


def test_verifies_and_ends_with_one_json_object(demo: Path) -> None:
    result = run(demo, "--verify", "--json", *model_options(demo))
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout.splitlines()[-1])
    assert summary["demo"] == "first"
    assert summary["verified"] is True
    assert (summary["num_replies"], summary["num_unchecked_replies"]) == (7, 1)
    assert 0 <= summary["worst_margin"] <= summary["margin_limit"]
    assert summary["num_ticks"] > 0
    assert summary["num_tokens"] > 0


def test_a_difference_is_an_error_and_stands_in_the_json(demo: Path, tmp_path: Path) -> None:
    lines = builders.read_lines(demo / "recording.jsonl")
    lines[1]["prompts"][0]["blocks"][2]["id"] = "0" * 64
    path = builders.write_lines(tmp_path / "edited.jsonl", lines)
    world = demo.parent.parent / "mill"
    result = run(path, "--verify", "--json", "--world", world, *model_options(demo))
    assert isinstance(result.exception, RecordingError)
    summary = json.loads(result.stdout.splitlines()[-1])
    assert summary["verified"] is False
    assert "tick 1, character/anna: block" in summary["difference"]


def test_says_when_the_recording_was_cut_off(demo: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.jsonl"
    path.write_bytes((demo / "recording.jsonl").read_bytes()[:-200])
    assert "note: " in run(path, "--fast").output


def test_keeps_the_recorded_pace(demo: Path) -> None:
    """Twice as fast takes half the time; nothing is waited for that is in the past."""
    now_s = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now_s
        assert seconds > 0
        now_s += seconds

    moments = transcript(read_recording(demo))
    console = Console(file=io.StringIO())
    Player(console, Pace(speed=2.0, now_s=lambda: now_s, sleep=sleep)).play(moments)
    last_ms = max(getattr(moment, "end_ms", moment.at_ms) for moment in moments)
    assert 0 < now_s <= last_ms / 2000


def test_steps_wait_for_enter_until_nobody_answers(demo: Path) -> None:
    """Each moment waits once; at the end of input the rest is shown without waiting."""
    num_steps = 0

    def read_line() -> str:
        nonlocal num_steps
        num_steps += 1
        if num_steps > 3:
            raise EOFError
        return ""

    out = io.StringIO()
    Player(Console(file=out), Pace(is_step=True, read_line=read_line, sleep=lambda _: None)).play(
        transcript(read_recording(demo))
    )
    assert num_steps == 4
    assert "Guess!" in out.getvalue()
