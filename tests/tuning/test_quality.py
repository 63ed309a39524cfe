"""The evaluation itself: figures, modes, and the command on a model from a folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from npc_engine.cli.bench.quality import _crowded, show
from npc_engine.cli.main import app
from npc_engine.config import EngineConfig
from npc_engine.errors import ConfigError
from npc_engine.runtime import load
from npc_engine.tuning import Scene, load_scenes
from npc_engine.tuning.quality import Share, TurnResult, evaluate, parse_mode
from npc_engine.tuning.quality.figures import difference
from npc_engine.tuning.scenes import Kind
from tests.inference.builders import tiny_checkpoint

DEVELOPMENT = Path(__file__).parents[2] / "data/scenes/evaluation/development.jsonl"
MODES = (
    "full,block,block-no-header,no-position,prompt-cache,superposition,group-60,relink-4,relink-30%,ape,"
    "fast,balanced,exact"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny"), "llama", max_position_embeddings=8192)


def short_scenes() -> list[Scene]:
    return [
        scene.model_copy(update={"turns": scene.turns[:3], "updates": ()}) for scene in load_scenes(DEVELOPMENT)[:3]
    ]


def test_every_mode_plays_and_differs_from_full_attention(folder: Path, tmp_path: Path) -> None:
    """Exact is full attention; the others are not; every turn is judged in each."""
    config = EngineConfig(
        model=str(folder), cache_dir=tmp_path, data_dir=tmp_path, dtype="float32", max_context_tokens=8000
    )
    scenes = short_scenes()
    result = evaluate(load(config), scenes, [parse_mode(name) for name in MODES.split(",")], config, parallel=2)
    assert {mode.overall.num_turns for mode in result.modes.values()} == {9}
    full = result.modes["full"]
    assert result.modes["exact"].kl_to_full == pytest.approx(0, abs=1e-6)
    assert [turn.reply for turn in result.modes["exact"].turns] == [turn.reply for turn in full.turns]
    for name in set(result.modes) - {"full", "exact"}:
        assert result.modes[name].kl_to_full > 1e-4, name
        assert result.modes[name].answer_nll > 0
    assert result.modes["fast"].answer_nll == pytest.approx(result.modes["block"].answer_nll)


def test_the_command_takes_a_folder_and_ends_with_json(folder: Path, tmp_path: Path) -> None:
    """As it would take a hub id."""
    scenes = tmp_path / "scenes.jsonl"
    scenes.write_text("\n".join(scene.model_dump_json() for scene in short_scenes()))
    arguments = ["bench", "quality", "--scenes", str(scenes), "--model", str(folder), "--cache-dir", str(tmp_path)]
    options = ["--modes", "full,block", "--max-tokens", "8", "--transcripts", str(tmp_path / "turns.jsonl"), "--json"]
    result = CliRunner().invoke(app, arguments + options, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout.splitlines()[-1])
    assert set(found) >= {"model", "adapter", "modes"}
    assert set(found["modes"]["block"]) >= {"accuracy", "num_turns", "by_kind", "answer_nll", "kl_to_full", "ttft_ms"}
    assert len((tmp_path / "turns.jsonl").read_text().splitlines()) == 18


def test_pages_say_what_buffers_say(folder: Path, tmp_path: Path) -> None:
    """The same replies and likelihoods, with blocks at any position, over edits in mid-conversation."""
    config = EngineConfig(
        model=str(folder), cache_dir=tmp_path, data_dir=tmp_path, dtype="float32", max_context_tokens=8000
    )
    modes = [parse_mode(name) for name in ("full", "block", "no-position")]
    model, scenes = load(config), [load_scenes(DEVELOPMENT)[0]]
    buffers, pages = (
        evaluate(model, scenes, modes, replace(config, attention=attention), parallel=1)
        for attention in ("buffers", "sdpa")
    )
    assert any(update.before_turn for update in scenes[0].updates)
    for name, result in pages.modes.items():
        assert [turn.reply for turn in result.turns] == [turn.reply for turn in buffers.modes[name].turns]
        assert result.answer_nll == pytest.approx(buffers.modes[name].answer_nll, abs=1e-4)


def test_scores_alone_are_the_same_scores(folder: Path, tmp_path: Path) -> None:
    """Without conversations: no accuracy, the same likelihoods, and the command shows them."""
    config = EngineConfig(
        model=str(folder), cache_dir=tmp_path, data_dir=tmp_path, dtype="float32", max_context_tokens=8000
    )
    modes = [parse_mode("full"), parse_mode("group-60")]
    model, scenes = load(config), short_scenes()
    played, scored = (evaluate(model, scenes, modes, config, parallel=3, plays=plays) for plays in (True, False))
    for name, result in scored.modes.items():
        assert (result.turns, result.versus_full) == ((), None)
        assert result.answer_nll == pytest.approx(played.modes[name].answer_nll)
        assert result.kl_to_full == pytest.approx(played.modes[name].kl_to_full)
    screen = Console(record=True, width=100)
    show(scored, screen)
    assert "group-60" in screen.export_text()


def test_an_unknown_mode_lists_the_names() -> None:
    """One line."""
    with pytest.raises(ConfigError, match=r"--modes: no mode 'blocks'; there are full, block, .*relink-K"):
        parse_mode("blocks")


def test_shares_and_differences() -> None:
    """Wilson's interval, and differences that keep scenes together."""
    assert Share(8, 10).interval == pytest.approx((0.4902, 0.9433), abs=1e-3)
    assert Share(0, 0).interval == (0.0, 1.0)
    better = [TurnResult(str(i // 2), i, Kind.WORLD, "", "", i % 2 == 0) for i in range(20)]
    worse = [TurnResult(str(i // 2), i, Kind.WORLD, "", "", False) for i in range(20)]
    assert difference(better, worse) == pytest.approx((0.5, 0.5, 0.5))
    assert difference(worse, worse) == (0, 0, 0)


def test_scenes_get_as_many_blocks_as_asked_for(tmp_path: Path) -> None:
    """Of other scenes, none twice; more than there are is one line."""
    scenes = load_scenes(DEVELOPMENT)
    for number in (25, 150):
        crowded = _crowded(scenes[0], scenes, number)
        assert len({block.text for block in crowded.blocks}) == len(crowded.blocks) == number
        assert {block.id for block in scenes[0].blocks} <= {block.id for block in crowded.blocks}
    with pytest.raises(ConfigError, match=r"--blocks 9999: the file has \d+ blocks that go with"):
        _crowded(scenes[0], scenes, 9999)


def test_a_file_for_transcripts_is_tried_first(tmp_path: Path) -> None:
    """Not after minutes of work."""
    arguments = ["bench", "quality", "--scenes", str(DEVELOPMENT), "--transcripts", str(tmp_path / "none/turns.jsonl")]
    result = CliRunner().invoke(app, [*arguments, "--model", str(tmp_path / "no-model")])
    assert result.exit_code == 2
    assert "--transcripts" in result.output
    assert "can't be written" in result.output
