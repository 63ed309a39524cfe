"""A recording verifies where it was made and elsewhere, and any change to it is found and named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from npc_engine.config import SamplingParams
from npc_engine.errors import NpcEngineError, RecordingError
from npc_engine.inference import Model
from npc_engine.runtime import NpcEngine
from npc_engine.runtime.recording import read_recording
from npc_engine.runtime.recording_lines import RecordedReplyEnded
from npc_engine.runtime.replay import Verification, find_world, verify
from npc_engine.runtime.transcript import Answer, Event, Utterance, transcript
from npc_engine.world import load_world
from tests.runtime import recording_builders as builders

Lines = list[dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("replay")
    builders.write_world(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return builders.tiny_model(folder)


@pytest.fixture(scope="module")
def recorded(folder: Path, model: Model) -> Path:
    return builders.record(folder, folder / "talk.jsonl", builders.conversation, model=model)


def check(folder: Path, path: Path, model: Model, **options: Any) -> Verification:
    world = load_world(folder / "mill")
    return verify(read_recording(path), world, model, builders.config(folder), **options)


def test_what_was_recorded_verifies(folder: Path, recorded: Path, model: Model) -> None:
    """Queued, simultaneous, cancelled and cut-off replies, changes and refusals come out again."""
    verification = check(folder, recorded, model)
    assert verification.num_replies == 7
    assert verification.num_unchecked_replies == 1  # the one at a temperature
    assert verification.num_tokens == sum(
        len(reply.sampled_token_ids) for reply in list(read_recording(recorded).replies)[:-1]
    )
    assert verification.worst_margin < 1e-3


def test_verifies_in_another_dtype(folder: Path, recorded: Path) -> None:
    """Block ids carry the recorded dtype, so they are equal; margins say what the other dtype costs."""
    verification = check(folder, recorded, builders.tiny_model(folder, dtype="bfloat16"), margin_limit=1e9)
    assert verification.num_replies == 7
    assert verification.worst_margin > 0


def test_a_reply_that_ended_by_itself_verifies(folder: Path, recorded: Path, model: Model, tmp_path: Path) -> None:
    """The stop token is part of the recorded tokens and is checked like any other."""
    first = next(read_recording(recorded).replies)
    stopping = builders.with_stop_id(model, first.sampled_token_ids[5])
    path = builders.record(folder, tmp_path / "stop.jsonl", builders.conversation, model=stopping)
    reply = next(read_recording(path).replies)
    assert reply.finish_reason == "stop"
    assert reply.num_reply_tokens == len(reply.sampled_token_ids) - 1
    check(folder, path, stopping)


def test_repetition_penalty_verifies(folder: Path, model: Model, tmp_path: Path) -> None:
    """Greedy with a penalty is greedy: margins are taken from the penalized logits."""
    sampling = SamplingParams(max_tokens=40, repetition_penalty=1.5)
    path = builders.record(
        folder, tmp_path / "penalty.jsonl", builders.conversation, model=model, settings={"sampling": sampling}
    )
    assert check(folder, path, model).worst_margin < 1e-3


def test_turns_that_were_lost_while_recording_verify(folder: Path, model: Model, tmp_path: Path) -> None:
    """A reply that computed lost turns again covers them with its block, and does so in the replay."""
    path = builders.record(
        folder, tmp_path / "lost.jsonl", builders.conversation, model=model, create=builders.forgetful_engine
    )
    assert max(reply.num_folded for reply in read_recording(path).replies) > 0
    assert check(folder, path, model).worst_margin < 1e-3


def test_a_reply_that_had_no_prompt_verifies(folder: Path, model: Model, tmp_path: Path) -> None:
    """An NPC goes while somebody waits to speak to it: that fails while recording and in the replay."""

    async def play(engine: NpcEngine) -> None:
        first = engine.say("ben", "Tell me all.", sampling=SamplingParams(max_tokens=2000))
        second = engine.say("ben", "And then?")
        async for _ in first:
            break
        await engine.patch([{"op": "remove", "path": "/characters/ben"}])
        first.cancel()
        with pytest.raises(NpcEngineError, match="ben"):
            await second.result()
        await builders.settled(engine)
        await engine.say("anna", "Where is he?").result()

    path = builders.record(folder, tmp_path / "gone.jsonl", play, model=model)
    inputs = [each for tick in read_recording(path).ticks for each in tick.inputs]
    assert [each.speech is None for each in inputs if isinstance(each, RecordedReplyEnded)][:2] == [False, True]
    assert check(folder, path, model).num_replies == 2

    lines = builders.read_lines(path)
    tick_of(lines, 2, "reply_ended")["inputs"][0]["speech"] = "Here!"
    with pytest.raises(RecordingError, match="request 2 was answered, but its reply is not recorded"):
        check(folder, builders.write_lines(tmp_path / "edited.jsonl", lines), model)


def test_what_a_crash_left_verifies(folder: Path, recorded: Path, model: Model, tmp_path: Path) -> None:
    """The file ends in the middle of a line; everything in front of it is checked."""
    content = recorded.read_bytes()
    path = tmp_path / "cut.jsonl"
    path.write_bytes(content[: len(content) * 2 // 3])
    recording = read_recording(path)
    assert recording.damage is not None
    assert check(folder, path, model).num_ticks == len(list(recording.ticks))


def test_another_model_is_refused_and_both_are_named(folder: Path, recorded: Path, model: Model) -> None:
    other = builders.tiny_model(folder, seed=1)
    with pytest.raises(RecordingError) as caught:
        check(folder, recorded, other)
    assert "model.fingerprint" in str(caught.value)
    assert model.identity.fingerprint[:12] in str(caught.value)
    assert other.identity.fingerprint[:12] in str(caught.value)


def test_another_world_is_refused_and_both_are_named(
    folder: Path, recorded: Path, model: Model, tmp_path: Path
) -> None:
    world = load_world(builders.write_world(tmp_path, setting="A mill stands on a lake."))
    with pytest.raises(RecordingError, match=r"world\.digest: recorded with world 'mill' \w{12}, 'mill' here is"):
        verify(read_recording(recorded), world, model, builders.config(folder))


# ── tampering ────────────────────────────────────────────────────────────────────────────────────────────────────


def tick_of(lines: Lines, request_id: int, kind: str = "say") -> dict[str, Any]:
    """The tick that has this request among its inputs."""
    return next(
        line
        for line in lines
        if line["kind"] == "tick"
        and any(each["request_id"] == request_id and each["kind"] == kind for each in line["inputs"])
    )


def prompt_of(lines: Lines, request_id: int) -> dict[str, Any]:
    return next(
        prompt
        for line in lines
        if line["kind"] == "tick"
        for prompt in line["prompts"]
        if prompt["request_id"] == request_id
    )


def reply_of(lines: Lines, request_id: int) -> dict[str, Any]:
    return next(line for line in lines if line["kind"] == "reply" and line["request_id"] == request_id)


def other_hex(text: str) -> str:
    return ("1" if text[0] == "0" else "0") + text[1:]


def edit_block(lines: Lines) -> None:
    block = next(b for b in prompt_of(lines, 1)["blocks"] if b["section"] == "sheet/goals")
    block["id"] = other_hex(block["id"])


def edit_num_tokens(lines: Lines) -> None:
    prompt_of(lines, 1)["blocks"][0]["num_tokens"] += 1


def drop_block(lines: Lines) -> None:
    blocks = prompt_of(lines, 1)["blocks"]
    blocks[:] = [block for block in blocks if block["section"] != "sheet/goals"]


def edit_turn_block(lines: Lines) -> None:
    turn = prompt_of(lines, 3)["blocks"][-1]
    turn["id"] = other_hex(turn["id"])


def edit_final_token(lines: Lines) -> None:
    prompt_of(lines, 1)["final_token_ids"][2] += 1


def edit_reply_token(lines: Lines) -> None:
    reply = reply_of(lines, 1)
    reply["sampled_token_ids"][3] = (reply["sampled_token_ids"][3] + 1) % 400


def edit_reply_and_input_token(lines: Lines) -> None:
    edit_reply_token(lines)
    tick_of(lines, 1, "reply_ended")["inputs"][0]["sampled_token_ids"] = reply_of(lines, 1)["sampled_token_ids"]


def edit_reply_token_beyond_vocabulary(lines: Lines) -> None:
    reply_of(lines, 1)["sampled_token_ids"][3] = 400


def edit_input_token(lines: Lines) -> None:
    tick_of(lines, 1, "reply_ended")["inputs"][0]["sampled_token_ids"][3] += 1


def edit_turn_id(lines: Lines) -> None:
    reply_of(lines, 1)["turn_id"] = other_hex(reply_of(lines, 1)["turn_id"])


def edit_digest(lines: Lines) -> None:
    tick_of(lines, 2, "patch")["digest"] = other_hex(tick_of(lines, 2, "patch")["digest"])


def edit_patch(lines: Lines) -> None:
    tick_of(lines, 2, "patch")["inputs"][0]["operations"][0]["value"] = "The wheel is gone."


def edit_changed(lines: Lines) -> None:
    tick_of(lines, 2, "patch")["changed"] = ["place/cellar"]


def edit_minutes(lines: Lines) -> None:
    line = next(line for line in lines if line["kind"] == "tick" and line["inputs"][0]["kind"] == "pass_time")
    line["inputs"][0]["minutes"] += 1


def edit_too_many_minutes(lines: Lines) -> None:
    line = next(line for line in lines if line["kind"] == "tick" and line["inputs"][0]["kind"] == "pass_time")
    line["inputs"][0]["minutes"] = 10**12


def edit_utterance(lines: Lines) -> None:
    tick_of(lines, 1)["inputs"][0]["text"] = "Who is here?"


def edit_listener(lines: Lines) -> None:
    tick_of(lines, 1)["inputs"][0]["npc"] = "character/ben"


def edit_unknown_listener(lines: Lines) -> None:
    tick_of(lines, 1)["inputs"][0]["npc"] = "character/nobody"


def edit_speech(lines: Lines) -> None:
    reply_of(lines, 1)["speech"] += "!"


def edit_speech_everywhere(lines: Lines) -> None:
    edit_speech(lines)
    tick_of(lines, 1, "reply_ended")["inputs"][0]["speech"] += "!"


def edit_seed(lines: Lines) -> None:
    lines[0]["seed"] += 1


def edit_refused(lines: Lines) -> None:
    next(line for line in lines if line["kind"] == "tick" and line["refused"])["refused"] = []


def edit_counts(lines: Lines) -> None:
    reply_of(lines, 1)["num_prompt_tokens"] += 1


def edit_finish_reason(lines: Lines) -> None:
    reply_of(lines, 1)["finish_reason"] = "cancelled"


def drop_reply(lines: Lines) -> None:
    lines.remove(reply_of(lines, 1))


def repeat_reply(lines: Lines) -> None:
    lines.insert(lines.index(reply_of(lines, 1)), reply_of(lines, 1))


def drop_tick(lines: Lines) -> None:
    lines.remove(tick_of(lines, 2, "patch"))


def repeat_tick(lines: Lines) -> None:
    lines.insert(lines.index(tick_of(lines, 2, "patch")), tick_of(lines, 2, "patch"))


def repeat_input(lines: Lines) -> None:
    inputs = tick_of(lines, 1, "reply_ended")["inputs"]
    inputs.append(inputs[0])


def edit_answering(lines: Lines) -> None:
    tick_of(lines, 1, "reply_ended")["inputs"][0]["request_id"] = 1000


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (
            edit_block,
            r":2: tick 1, character/anna: block character/anna sheet/goals: recorded \w{16} .* replayed \w{16}",
        ),
        (edit_num_tokens, r":2: tick 1, character/anna: block engine header: recorded with \d+ tokens"),
        (drop_block, r":2: tick 1, character/anna: layout: recorded .*, replayed character/anna sheet/goals"),
        (edit_turn_block, r"tick \d+, character/anna: block character/anna turn/1: recorded \w{16}"),
        (edit_final_token, r":2: tick 1, character/anna: final block, token 2: recorded \d+ \(.*\), replayed \d+"),
        (edit_reply_token, r":3: tick 1, character/anna: reply to request 1, token \d .*below the likeliest"),
        (edit_reply_and_input_token, r":3: tick 1, character/anna: reply to request 1, token \d .*below the likeliest"),
        (edit_reply_token_beyond_vocabulary, r":3: tick 1, character/anna: reply token 3: 400 is not in a vocabulary"),
        (edit_input_token, r":4: tick \d+, character/anna: reply of request 1: sampled_token_ids: line 3 has"),
        (edit_turn_id, r":3: tick 1, character/anna: block character/anna turn of request 1: recorded \w{16}"),
        (edit_digest, r"tick \d+: state: recorded \w{16}, replayed \w{16}; inputs: patch 2 of /places/yard"),
        (edit_patch, r"tick \d+: state: recorded \w{16}, replayed \w{16}; inputs: patch 2 of /places/yard"),
        (edit_changed, r"tick \d+: changed entities: recorded place/cellar, replayed place/yard"),
        (edit_minutes, r"tick \d+: state: .*91 minutes pass"),
        (
            edit_too_many_minutes,
            r"tick \d+: refused requests: recorded none, replayed \d+ \(minutes 1\d+: can't advance",
        ),
        (edit_utterance, r":2: tick 1, character/anna: final block, token \d+"),
        (
            edit_listener,
            r":2: tick 1: request 1: recorded of character/anna to player/player, replayed of character/ben",
        ),
        (
            edit_unknown_listener,
            r":2: tick 1: replies due: recorded for requests 1, replayed none \(no prompt for request 1: "
            r'no character "character/nobody"',
        ),
        (edit_speech, r":4: tick \d+, character/anna: reply of request 1: speech: line 3 has"),
        (edit_speech_everywhere, r":4: tick \d+: state: .*inputs: the reply of character/anna to request 1 ended"),
        (edit_seed, r":2: tick 1, character/anna: seed of request 1"),
        (edit_refused, r"tick \d+: refused requests: recorded none, replayed \d+"),
        (edit_counts, r":3: tick 1, character/anna: num_prompt_tokens: recorded \d+, replayed \d+"),
        (edit_finish_reason, r":3: tick 1, character/anna: finish_reason: recorded cancelled, replayed length"),
        (drop_reply, r":3: tick \d+, character/anna: request 1 was answered, but its reply is not recorded"),
        (repeat_reply, r":4: tick \d+: a reply to request 1, which no prompt is due for"),
        (drop_tick, r"tick \d+, character/\w+: block place/yard conditions"),
        (repeat_tick, r"tick \d+: tick: \d+ does not lie behind"),
        (repeat_input, r":4: tick \d+: a reply to request 1 ended, which no prompt is due for"),
        (edit_answering, r"tick \d+: a reply to request 1000 ended, which no prompt is due for"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_tampering_is_found_and_named(
    folder: Path, recorded: Path, model: Model, tmp_path: Path, edit: Callable[[Lines], None], expected: str
) -> None:
    """The first line that does not follow is named with its tick, and with NPC and block where there is one."""
    lines = builders.read_lines(recorded)
    edit(lines)
    path = builders.write_lines(tmp_path / "edited.jsonl", lines)
    with pytest.raises(RecordingError, match=expected) as caught:
        check(folder, path, model)
    assert str(caught.value).startswith(f"{path}:")
    assert "\n" not in str(caught.value)


# ── reading along ────────────────────────────────────────────────────────────────────────────────────────────────


def test_transcript_tells_what_happened_in_order(recorded: Path) -> None:
    """Utterances, changes and answers by time; the pieces of an answer are its speech."""
    moments = transcript(read_recording(recorded))
    assert [moment.at_ms for moment in moments] == sorted(moment.at_ms for moment in moments)
    assert moments[0] == Utterance(moments[0].at_ms, "Rowan", "Anna Reed", "Who is there?")
    events = [moment.text for moment in moments if isinstance(moment, Event)]
    assert events == [
        "places/yard/conditions/wheel = The wheel turns.",
        "refused: places/cellar/name = the cellar",
        "90 minutes pass",
    ]
    answers = [moment for moment in moments if isinstance(moment, Answer)]
    assert len(answers) == 7
    for answer in answers:
        assert "".join(text for _, text in answer.pieces()) == answer.reply.speech
        assert all(answer.at_ms <= at_ms <= answer.end_ms for at_ms, _ in answer.pieces())


def test_the_world_lies_beside_the_demos(folder: Path, recorded: Path, tmp_path: Path) -> None:
    """``demos/<demo>/recording.jsonl`` plays in ``worlds/<name>``; elsewhere the world has to be given."""
    demo = tmp_path / "demos" / "first"
    demo.mkdir(parents=True)
    (demo / "recording.jsonl").write_bytes(recorded.read_bytes())
    with pytest.raises(RecordingError, match="--world"):
        find_world(read_recording(demo))
    world = builders.write_world(tmp_path / "worlds")
    assert find_world(read_recording(demo)) == world


def test_a_conversation_that_does_not_fit_names_the_option(folder: Path, model: Model, recorded: Path) -> None:
    """Turns are held for good while verifying; when memory is short, the message says what to raise."""
    config = builders.config(folder, max_block_memory=1 << 10)
    with pytest.raises(Exception, match="max_block_memory"):
        verify(read_recording(recorded), load_world(folder / "mill"), model, config)


def test_an_empty_recording_verifies(folder: Path, model: Model, tmp_path: Path) -> None:
    async def play(engine: NpcEngine) -> None:
        pass

    verification = check(folder, builders.record(folder, tmp_path / "empty.jsonl", play, model=model), model)
    assert (verification.num_ticks, verification.num_replies, verification.worst_margin) == (0, 0, 0.0)
