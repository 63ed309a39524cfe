"""``npc-engine play``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from npc_engine.config import DEFAULT_MODEL, default_cache_dir
from npc_engine.inference import ChatTemplate, Tokenizer, resolve
from tests.cli.cli_harness import NINESTEP, invoke, last_json, run_process, succeed

REPLY_FIELDS = {
    "npc",
    "player",
    "text",
    "speech",
    "emotion",
    "actions",
    "finish_reason",
    "ttft_ms",
    "total_ms",
    "num_prompt_tokens",
    "num_cached_tokens",
    "num_encoded_tokens",
    "num_reply_tokens",
}
SCENARIO = """\
title: A test
sampling: {max_tokens: 4, repetition_penalty: 1.5}
steps:
  - note: Nothing has happened.
  - say: {npc: Wick, text: "Hello!"}
  - set: places/basin/conditions/lamp=The signal lamp is green.
  - advance: 10
  - say: {npc: odile, text: "And now?", expect: ["never in a thousand years", "."]}
"""


def test_say_ends_with_json(tiny: tuple[str, ...]) -> None:
    """Standard output holds the object and nothing else; what people read goes to standard error."""
    result = succeed("play", NINESTEP, "--npc", "Wick", "--say", "Hello!", "--say", "Well?", "--json", *tiny)
    assert len(result.stdout.splitlines()) == 1
    summary = last_json(result.stdout)
    assert (summary["device"], summary["dtype"], summary["world"]) == ("cpu", "float32", "ninestep")
    first, second = summary["replies"]
    assert set(first) == set(second) == REPLY_FIELDS
    assert (first["npc"], first["player"], first["text"]) == ("wick", "player", "Hello!")
    assert first["num_cached_tokens"] == 0
    assert second["num_cached_tokens"] > first["num_prompt_tokens"]
    assert "Wick Tansy: " in result.stderr
    assert "tokens in the prompt" in result.stderr


def test_say_without_json_talks_on_standard_output(tiny: tuple[str, ...]) -> None:
    """Both sides and the figures, without a terminal's decoration."""
    result = succeed("play", NINESTEP, "--npc", "wick", "--say", "Hello!", *tiny)
    assert "Rowan: Hello!" in result.stdout
    assert "TTFT" in result.stdout
    assert "\x1b" not in result.stdout


def test_a_second_run_encodes_the_final_block_alone(tiny: tuple[str, ...]) -> None:
    """Blocks are found on disk by whoever comes next."""
    arguments = ("play", NINESTEP, "--npc", "wick", "--say", "Hello!", "--json", *tiny)
    first = last_json(succeed(*arguments).stdout)["replies"][0]
    second = last_json(succeed(*arguments).stdout)["replies"][0]
    assert first["num_encoded_tokens"] == first["num_prompt_tokens"] == second["num_prompt_tokens"]
    assert 0 < second["num_encoded_tokens"] < 40
    assert second["speech"] == first["speech"]


def test_compare_measures_full_prefills(tiny: tuple[str, ...]) -> None:
    """Every reply has its baseline, and a table ends the talk."""
    result = succeed("play", NINESTEP, "--npc", "wick", "--say", "Hello!", "--compare", "--json", *tiny)
    summary = last_json(result.stdout)
    assert summary["replies"][0]["full_prefill_ms"] > 0
    assert set(summary["medians"]) >= {"ttft_ms", "full_prefill_ms", "ratio"}
    assert "full prefill" in result.stderr
    assert "median" in result.stderr


def test_a_scenario(tiny: tuple[str, ...], tmp_path: Path) -> None:
    """Steps are played in order; JSON says which answers were as expected."""
    path = tmp_path / "scenario.yaml"
    path.write_text(SCENARIO)
    result = succeed("play", NINESTEP, "--scenario", path, "--compare", "--json", *tiny)
    replies = last_json(result.stdout)["replies"]
    assert [reply["npc"] for reply in replies] == ["wick", "odile"]
    assert [reply["expected"] for reply in replies] == [True, False]
    assert all(reply["full_prefill_ms"] > 0 for reply in replies)
    shown = result.stderr
    assert shown.index("Nothing has happened.") < shown.index("changed place/basin") < shown.index("And now?")
    assert "/never in a thousand years/" in shown


def test_the_command_line_overrules_a_scenarios_sampling(tiny: tuple[str, ...], tmp_path: Path) -> None:
    """`tiny` asks for 8 tokens a reply, the scenario for 4."""
    path = tmp_path / "scenario.yaml"
    path.write_text(SCENARIO)
    replies = last_json(succeed("play", NINESTEP, "--scenario", path, "--json", *tiny).stdout)["replies"]
    assert max(reply["num_reply_tokens"] for reply in replies) in range(5, 9)


def test_typed_talk(tiny: tuple[str, ...]) -> None:
    """Slash commands look, change, save and load; mistakes are shown, and the talk goes on."""
    lines = [
        "/help",
        "/who",
        "/blocks",
        "Hello!",
        "/set places/basin/conditions/lamp=The signal lamp is green.",
        "/set places/nowhere/name=x",
        "/tick 30",
        "/tick soon",
        "/save first",
        "/save first",
        "/saves",
        "/load first",
        "/load second",
        "/npc odile",
        "/npc nobody",
        "/dance",
        "/quit",
        "never said",
    ]
    result = succeed("play", NINESTEP, "--npc", "wick", *tiny, stdin="\n".join(lines))
    for expected in (
        "prepared in",
        "/set POINTER=VALUE",
        "Teo Lindqvist",
        "place/basin",
        "memory",
        "Wick Tansy: ",
        "changed place/basin",
        "nowhere",
        "it is day 12, 17:00",
        "write a number of minutes",
        "saved 'first'",
        "in place of the one of tick",
        "loaded 'first'",
        "no save 'second'",
        "odile> ",
        'no NPC "nobody"',
        "no command /dance",
    ):
        assert expected in result.stdout, expected
    assert "never said" not in result.stdout


def test_typed_talk_ends_with_the_input(tiny: tuple[str, ...]) -> None:
    """The end of the input leaves like /quit, with the JSON of what was said."""
    result = succeed("play", NINESTEP, "--npc", "wick", "--json", *tiny, stdin="Hello!\n")
    assert [reply["text"] for reply in last_json(result.stdout)["replies"]] == ["Hello!"]


def test_load_goes_on_from_a_save(tiny: tuple[str, ...]) -> None:
    """A save made in one talk is the start of the next: the conversation is in the prompt."""
    succeed("play", NINESTEP, "--npc", "wick", *tiny, stdin="Hello!\n/save evening\n")
    arguments = ("play", NINESTEP, "--npc", "wick", "--say", "And now?", "--json", *tiny)
    fresh = last_json(succeed(*arguments).stdout)["replies"][0]
    loaded = last_json(succeed(*arguments, "--load", "evening").stdout)["replies"][0]
    assert loaded["num_prompt_tokens"] > fresh["num_prompt_tokens"]
    assert 0 < loaded["num_encoded_tokens"] < 40


def verified(path: Path, tiny: tuple[str, ...]) -> dict[str, Any]:
    """The JSON of a replay that verified, with the model of `tiny`."""
    model = tiny[: tiny.index("--threads")]
    return last_json(succeed("replay", path, "--verify", "--world", NINESTEP, "--json", *model).stdout)


def test_record_what_is_said(tiny: tuple[str, ...], tmp_path: Path) -> None:
    """The file is finished with its end, verifies, and shows the talk without a model."""
    path = tmp_path / "talk.jsonl"
    result = succeed("play", NINESTEP, "--npc", "wick", "--say", "Hello!", "--say", "Well?", "--record", path, *tiny)
    assert f"recorded to {path}" in result.stdout
    summary = verified(path, tiny)
    assert (summary["num_replies"], summary["damage"]) == (2, None)
    assert "Rowan to Wick Tansy: Well?" in succeed("replay", path, "--fast").stdout


def test_record_a_scenario(tiny: tuple[str, ...], tmp_path: Path) -> None:
    """A folder gets the file that ``replay FOLDER`` looks for; baselines leave no trace in it."""
    (tmp_path / "demo").mkdir()
    scenario = tmp_path / "demo" / "scenario.yaml"
    scenario.write_text(SCENARIO)
    succeed("play", NINESTEP, "--scenario", scenario, "--record", scenario.parent, "--compare", *tiny)
    assert (scenario.parent / "recording.jsonl").exists()
    summary = verified(scenario.parent, tiny)
    assert (summary["num_replies"], summary["damage"]) == (2, None)


@pytest.mark.parametrize("farewell", ["/quit\n", ""])
def test_record_typed_talk(tiny: tuple[str, ...], tmp_path: Path, farewell: str) -> None:
    """Leaving, by a command or at the end of the input, finishes the file."""
    path = tmp_path / "talk.jsonl"
    stdin = f"Hello!\n/set places/basin/conditions/lamp=The signal lamp is green.\n/tick 10\n{farewell}"
    succeed("play", NINESTEP, "--npc", "wick", "--record", path, *tiny, stdin=stdin)
    summary = verified(path, tiny)
    assert (summary["num_replies"], summary["damage"]) == (1, None)
    shown = succeed("replay", path, "--fast").stdout
    assert shown.index("Hello!") < shown.index("lamp = The signal lamp is green.") < shown.index("10 minutes pass")


def test_record_leaves_nothing_when_no_talk_begins(tiny: tuple[str, ...], tmp_path: Path) -> None:
    """A model that can't be loaded costs no file name."""
    path = tmp_path / "talk.jsonl"
    arguments = ("play", NINESTEP, "--npc", "wick", "--say", "Hello!", "--record", path)
    assert invoke(*arguments, "--model", "./missing", "--data-dir", tmp_path).exit_code == 2
    assert not path.exists()
    succeed(*arguments, *tiny)


def test_a_narrow_encoding_is_no_reason_to_fail(tiny: tuple[str, ...]) -> None:
    """What the console can't show becomes a question mark."""
    env = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    stdout = run_process("play", NINESTEP, "--npc", "wick", "--say", "Grüße 龍", "--compare", *tiny, env=env)
    assert "Rowan: Gr??e ?" in stdout


@pytest.mark.model
def test_two_processes_with_the_default_model(tmp_path: Path) -> None:
    """After a restart the first utterance to an NPC encodes its final block and nothing else."""
    cache_dir = default_cache_dir()
    checkpoint = resolve(DEFAULT_MODEL, cache_dir)
    texts = ("What colour is the signal lamp?", "Thank you.")
    says = [argument for text in texts for argument in ("--say", text)]
    folders = ("--data-dir", tmp_path, "--cache-dir", cache_dir)
    arguments = ("play", NINESTEP, "--npc", "Wick", *says, "--max-tokens", "16", "--json", *folders)
    first, second = (last_json(run_process(*arguments)) for _ in range(2))

    assert {"model", "device", "dtype", "replies"} <= set(second)
    assert first["replies"][0]["num_encoded_tokens"] == first["replies"][0]["num_prompt_tokens"]
    assert [reply["speech"] for reply in second["replies"]] == [reply["speech"] for reply in first["replies"]]

    tokenizer = Tokenizer(checkpoint.folder)
    template = ChatTemplate.load(checkpoint.folder, tokenizer)
    openings = (template.user_open, template.next_user_open)
    # A reply that was cut off leaves its last token to the next final block.
    num_pending = 0
    for opening, text, reply in zip(openings, texts, second["replies"], strict=True):
        final = (*opening, *tokenizer.encode_text(text), *template.assistant_open)
        assert reply["num_encoded_tokens"] == len(final) + num_pending
        num_pending = int(reply["finish_reason"] == "length")
