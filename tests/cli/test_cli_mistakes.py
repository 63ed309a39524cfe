"""A user's mistake: one line on standard error, exit code 2, no traceback."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.cli_harness import NINESTEP, ROOT, error_line, invoke, spawn

PLAY = ("play", NINESTEP, "--npc", "wick", "--say", "Hello!")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("play", "worlds/atlantis", "--npc", "x", "--say", "y"), "no such folder"),
        (("play", NINESTEP, "--npc", "nobody", "--say", "y"), '--npc: no NPC "nobody"'),
        (("play", NINESTEP, "--say", "y"), "--npc: name whom to speak to: Bastian Roe (bastian)"),
        (("play", NINESTEP), "--npc: name whom to speak to: Bastian Roe (bastian)"),
        (("play", NINESTEP, "--scenario", "x.yaml", "--say", "y"), "--scenario"),
        (("play", NINESTEP, "--scenario", "missing.yaml"), "missing.yaml:1: "),
        (("play",), "'WORLD'"),
        (("serve", "worlds/atlantis"), "no such folder"),
        (("serve", NINESTEP, "--port", "99999"), "'--port'"),
        (("serve", NINESTEP, "--port", "many"), "'--port'"),
        (("serve", NINESTEP, "--token-file", "missing.txt"), "--token-file missing.txt"),
        (("world", "show", "worlds/atlantis"), "no such folder"),
        (("world", "show", NINESTEP, "--npc", "nobody"), 'no NPC "nobody"'),
        (("world",), "Missing command"),
        (("cache", "prune", "--max-bytes", "a lot"), "'a lot' is no size"),
        (("model", "info", "--device", "abacus"), "device 'abacus'"),
        (("model", "info", "--dtype", "int3"), "dtype 'int3'"),
        (("model", "pull", "--model", "./missing.gguf"), "no model './missing.gguf'"),
        ((*PLAY, "--model", "./missing"), "no model './missing'"),
        ((*PLAY, "--record", "README.md"), "README.md: exists already; delete it, or record to another file"),
        ((*PLAY, "--record", "README.md/talk.jsonl"), "README.md/talk.jsonl: its folder can't be made"),
        ((*PLAY, "--record", "talk.jsonl", "--load", "evening"), "--record starts with a new game"),
        ((*PLAY, "--temperature", "-1"), "'--temperature'"),
        ((*PLAY, "--max-tokens", "0"), "'--max-tokens'"),
        ((*PLAY, "--max-block-memory", "2 lumps"), "'2 lumps' is no size"),
        (("dance",), "No such command 'dance'"),
        (("play", NINESTEP, "--dance"), "--dance"),
    ],
)
def test_one_line(arguments: tuple[str, ...], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line names the option or file, before a model is loaded."""
    monkeypatch.setenv("NPC_ENGINE_HOME", str(tmp_path))
    assert expected in error_line(invoke(*arguments))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("play", NINESTEP, "--npc", "wick", "--say", " "), "--say: the utterance is empty"),
        ((*PLAY, "--player", "nobody"), "nobody"),
        ((*PLAY, "--load", "yesterday"), "no save 'yesterday'"),
        (("serve", NINESTEP, "--load", "yesterday"), "no save 'yesterday'"),
        (("serve", NINESTEP, "--host", "0.0.0.0", "--port", "0"), "--token-file"),
    ],
)
def test_one_line_with_a_model(arguments: tuple[str, ...], expected: str, tiny: tuple[str, ...]) -> None:
    """What only a running engine can know."""
    result = invoke(*arguments, "--json", *tiny)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert expected in result.stderr.splitlines()[-1]


def test_an_unknown_architecture(tiny: tuple[str, ...], tmp_path: Path) -> None:
    """It is refused by name."""
    folder = tmp_path / "mamba"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["MambaForCausalLM"], "model_type": "mamba"}))
    weights = next(Path(tiny[1]).glob("model.safetensors"))
    (folder / "model.safetensors").write_bytes(weights.read_bytes())
    (folder / "tokenizer.json").write_bytes((Path(tiny[1]) / "tokenizer.json").read_bytes())
    options = ("--model", folder, "--cache-dir", tmp_path / "cache", "--data-dir", tmp_path / "data")
    assert "MambaForCausalLM" in error_line(invoke(*PLAY, *options))
    assert "MambaForCausalLM" in error_line(invoke("model", "info", "--model", folder, "--cache-dir", tmp_path))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("title: x\nsteps:\n  - say: {npc: wick, text: 'Hello!\n", "scenario.yaml:3: "),
        ("title: x\nsteps:\n  - set: places/basin/conditions/lamp\n", "scenario.yaml:3: "),
        ("title: x\nsteps:\n  - note: y\n  - say: {npc: nobody, text: z}\n", 'scenario.yaml:4: no NPC "nobody"'),
    ],
)
def test_a_broken_scenario(text: str, expected: str, tmp_path: Path) -> None:
    """File and line, before a model is loaded."""
    path = tmp_path / "scenario.yaml"
    path.write_text(text)
    assert expected in error_line(invoke("play", NINESTEP, "--scenario", path))


def test_a_broken_world(tmp_path: Path) -> None:
    """``world check`` lists all of it on standard output and exits with 2."""
    (tmp_path / "world.yaml").write_text("format: 1\nid: x\ntitle: X\n")
    result = invoke("world", "check", tmp_path)
    assert result.exit_code == 2
    lines = result.stdout.splitlines()
    assert len(lines) > 1
    assert all(line.startswith(f"{tmp_path}/") for line in lines)


def test_bytes_that_are_no_text(tiny: tuple[str, ...]) -> None:
    """An argument in another encoding reaches the NPC with question marks."""
    process = subprocess.run(
        [
            sys.executable,
            "-m",
            "npc_engine.cli.main",
            "play",
            NINESTEP,
            "--npc",
            "wick",
            "--say",
            b"Gr\xfc\xdfe",
            *tiny,
        ],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert b"Rowan: Gr??e" in process.stdout


def test_a_reader_that_leaves(tiny: tuple[str, ...]) -> None:
    """Like ``| head -1``: no traceback when nobody reads any more."""
    process = spawn("world", "show", NINESTEP, "--npc", "wick", "--json")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    stderr = process.stderr.read()
    process.wait()
    assert "Traceback" not in stderr
    assert "Exception ignored" not in stderr
    process.stderr.close()
