"""Recordings are written line by line, read strictly, and survive a crash."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from npc_engine.errors import RecordingError
from npc_engine.runtime import NpcEngine
from npc_engine.runtime.recorder import Recorder, recording_to
from npc_engine.runtime.recording import Recording, read_recording
from npc_engine.runtime.recording_lines import RecordedReplyEnded, Tick
from tests.runtime import recording_builders as builders


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recording")
    builders.write_world(folder)
    builders.record(folder, folder / "recording.jsonl", builders.conversation)
    return folder


@pytest.fixture
def lines(folder: Path) -> list[dict[str, Any]]:
    return builders.read_lines(folder / "recording.jsonl")


def test_holds_header_inputs_prompts_and_replies(folder: Path) -> None:
    """A folder is read like the file in it; every reply that ended is there, with its prompt and its input."""
    recording = read_recording(folder)
    assert recording.damage is None
    assert recording.end is not None
    assert recording.end.reason == "closed"
    assert recording.header.world.name == "mill"
    assert recording.header.names["character/anna"] == "Anna Reed"
    replies = {reply.request_id: reply for reply in recording.replies}
    prompts = {prompt.request_id: prompt for tick in recording.ticks for prompt in tick.prompts}
    ended = {
        each.request_id: each
        for tick in recording.ticks
        for each in tick.inputs
        if isinstance(each, RecordedReplyEnded)
    }
    assert len(replies) == 7
    assert set(replies) == set(prompts)
    assert set(ended) <= set(replies)  # the last one ends when the engine is closed already
    assert {reply.finish_reason for reply in replies.values()} == {"length", "cancelled"}
    for request_id, each in ended.items():
        assert each.sampled_token_ids == replies[request_id].sampled_token_ids
    assert prompts[1].blocks[0].owner == ("engine", "header")
    assert [len(tick.refused) for tick in recording.ticks if tick.refused] == [1]


def test_ticks_run_forward_and_times_too(folder: Path) -> None:
    recording = read_recording(folder)
    ticks = [tick.tick for tick in recording.ticks]
    times = [line.at_ms for _, line in recording.lines]
    assert ticks == sorted(set(ticks))
    assert times == sorted(times)


def test_a_last_line_that_was_cut_off_is_reported_and_left_out(folder: Path, tmp_path: Path) -> None:
    """Wherever a crash cuts the file behind its header, what was written whole is read."""
    content = (folder / "recording.jsonl").read_bytes()
    header_end = content.index(b"\n") + 1
    for cut in range(header_end, len(content) - 1, 97):
        path = tmp_path / "cut.jsonl"
        path.write_bytes(content[:cut])
        recording = read_recording(path)
        assert recording.damage is not None
        num_whole = content[:cut].count(b"\n") - 1
        assert num_whole <= len(recording.lines) <= num_whole + 1


def _drop(*path: str | int) -> Any:
    def edit(line: dict[str, Any]) -> None:
        inner: Any = line
        for key in path[:-1]:
            inner = inner[key]
        del inner[path[-1]]

    return edit


@pytest.mark.parametrize(
    ("number", "edit", "expected"),
    [
        (1, lambda line: line.update(format=99), ":1: format: 99 "),
        (1, lambda line: line.update(seed="7"), ":1: seed: input should be a valid integer"),
        (1, lambda line: line["world"].update(name="../../etc"), ":1: world.name: "),
        (1, _drop("kind"), ":1: no header"),
        (2, _drop("inputs", 0, "text"), ":2: inputs.0.text: field required"),
        (2, lambda line: line["inputs"][0].update(kind="shout"), ":2: inputs.0: "),
        (2, lambda line: line["prompts"][0]["blocks"][1].update(id="xyz"), ":2: prompts.0.blocks.1.id: "),
        (2, lambda line: line.update(surprise=1), ":2: surprise: extra inputs are not permitted"),
        (3, lambda line: line["sampled_token_ids"].append(-1), ":3: sampled_token_ids.12: "),
        (3, lambda line: line.update(kind="header"), ":3: "),
    ],
)
def test_mistakes_name_file_line_and_field(
    lines: list[dict[str, Any]], tmp_path: Path, number: int, edit: Any, expected: str
) -> None:
    edit(lines[number - 1])
    path = builders.write_lines(tmp_path / "edited.jsonl", lines)
    with pytest.raises(RecordingError) as caught:
        read_recording(path)
    assert str(caught.value).startswith(f"{path}{expected}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\n", b"[]\n", b"\xff\xfe\n", b"[" * 100_000 + b"\n", b'{"kind":"tick"}\n'])
def test_what_is_no_recording_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "something.jsonl"
    path.write_bytes(content)
    with pytest.raises(RecordingError, match="no header"):
        read_recording(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match=r"nowhere\.jsonl: No such file"):
        read_recording(tmp_path / "nowhere.jsonl")


def test_lines_behind_the_end_are_refused(lines: list[dict[str, Any]], tmp_path: Path) -> None:
    path = builders.write_lines(tmp_path / "more.jsonl", [*lines, lines[1]])
    with pytest.raises(RecordingError, match="behind the end"):
        read_recording(path)


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "talk.jsonl"
    path.write_text("mine")
    with pytest.raises(RecordingError, match="exists already"):
        Recorder(path)
    assert path.read_text() == "mine"


def test_no_path_no_recorder() -> None:
    with recording_to(None) as nothing:
        assert nothing is None


def test_no_game_no_file(tmp_path: Path) -> None:
    """The file is created at once, so that a bad path is known; if the model does not load, none is left behind."""
    with recording_to(tmp_path / "talk.jsonl") as recorder:
        assert recorder is not None
        assert recorder.path.exists()
    assert not recorder.path.exists()
    recorder.close()


def test_loading_a_save_ends_the_recording(folder: Path, tmp_path: Path) -> None:
    """What follows starts from a state that the recording does not hold, so it says so and stops."""

    async def play(engine: NpcEngine) -> None:
        await engine.advance(5)
        await engine.save("early")
        await engine.advance(5)
        await engine.load("early")
        await engine.advance(5)

    recording = read_recording(builders.record(folder, tmp_path / "loaded.jsonl", play))
    assert recording.end is not None
    assert recording.end.reason == "a save was loaded"
    assert len(recording.lines) == 2


def test_a_full_disk_stops_the_recording_and_not_the_game(folder: Path, tmp_path: Path) -> None:
    """The engine goes on; whoever closes the recorder learns where it stopped."""
    replies = []

    class Full:
        closed = False

        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

        def close(self) -> None:
            self.closed = True

    async def play(engine: NpcEngine) -> None:
        recorder: Any = engine._observer
        recorder._file.close()
        recorder._file = Full()
        replies.append(await engine.say("ben", "Hello?").result())

    with pytest.raises(RecordingError, match=r"recording stopped at tick 1: .*No space left"):
        builders.record(folder, tmp_path / "full.jsonl", play)
    assert replies


def test_a_patch_that_json_can_not_hold_is_left_out(folder: Path, tmp_path: Path) -> None:
    """The world refuses it, so nothing is lost; the line stays valid JSON."""

    async def play(engine: NpcEngine) -> None:
        for value in (float("nan"), {1, 2}):
            with pytest.raises(Exception, match="not JSON"):
                await engine.patch([{"op": "add", "path": "/places/yard/conditions/x", "value": value}])
        await engine.patch([{"op": "add", "path": "/places/yard/conditions/x", "value": "It rains."}])

    path = builders.record(folder, tmp_path / "odd.jsonl", play)
    recording: Recording = read_recording(path)
    assert sum(len(tick.inputs) for tick in recording.ticks) == 1
    json.loads(path.read_text().splitlines()[1], parse_constant=lambda name: pytest.fail(name))
    assert all(isinstance(line, Tick) for _, line in recording.lines)
