"""``bench ttft`` and ``bench decode`` on random weights: their figures add up, their mistakes are one line."""

from __future__ import annotations

import json
from typing import cast

import pytest
from typer.testing import CliRunner

from npc_engine.cli.bench.random_blocks import ask, drain
from npc_engine.cli.main import app
from npc_engine.errors import ContextOverflowError
from npc_engine.inference import FailedOutput, GenerationRequest, InferenceEngine, Output


def run(*arguments: str) -> dict[str, object]:
    result = CliRunner().invoke(app, ["bench", *arguments, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found: dict[str, object] = json.loads(result.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("attention", ["buffers", "sdpa"])
def test_ttft_sets_every_way_beside_the_floor(attention: str) -> None:
    """One row per length: what was asked for, and times that can be compared."""
    found = run("ttft", "--config", "tiny", "--lengths", "0,300,600", "--rounds", "2", "--attention", attention)
    assert found["attention"] == attention
    rows = found["rows"]
    assert isinstance(rows, list)
    assert [row["context_tokens"] for row in rows] == [32, 300, 600]  # a header at least
    assert [row["num_blocks"] for row in rows] == [1, 3, 5]
    for row in rows:
        assert row["ttft_ms"] > row["floor_ms"] > 0
        assert min(row["full_ms"], row["copied_ms"], row["prefix_best_ms"]) > 0
        assert row["gflop"] < row["gflop_full"]
    assert rows[0]["paper_ms"] == 26


@pytest.mark.parametrize("attention", ["buffers", "sdpa"])
def test_decode_counts_shared_blocks_once(attention: str) -> None:
    """Two NPCs with the same world need less memory than twice one NPC's."""
    options = ("--context-tokens", "300", "--shared-tokens", "200", "--tokens", "6", "--attention", attention)
    found = run("decode", "--config", "tiny", "--npcs", "1,2", *options)
    rows = found["rows"]
    assert isinstance(rows, list)
    one, two = rows
    assert found["tokens_per_s"] == one["tokens_per_s"] > 0
    assert two["tokens_per_s"] == pytest.approx(2 * two["tokens_per_s_each"], rel=0.01)
    assert one["kv_mb"] == one["kv_mb_unshared"]
    assert one["kv_mb"] < two["kv_mb"] < two["kv_mb_unshared"]


@pytest.mark.parametrize("attention", ["auto", "sdpa"])
def test_tick_and_load_measure(attention: str) -> None:
    """What was asked for, and the attention that it was measured with."""
    options = ("--config", "tiny", "--attention", attention)
    tick = run("tick", *options, "--blocks", "12", "--changed", "3", "--rounds", "2")
    assert tick["attention"] == ("buffers" if attention == "auto" else attention)
    assert (tick["num_blocks"], tick["num_changed"], tick["context_tokens"]) == (12, 3, 12 * 20 + 32)
    assert min(float(str(tick[name])) for name in ("decision_ms", "full_ms", "encode_ms", "dense_ms")) > 0
    sizes = ("--npcs", "3", "--context-tokens", "200", "--shared-tokens", "100", "--tokens", "4", "--block-tokens", "9")
    load = run("load", *options, *sizes, "--rates", "20,40.5", "--seconds", "0.5")
    rows = load["rows"]
    assert isinstance(rows, list)
    for row in rows:
        assert 0 < row["ttft_p50_ms"] <= row["ttft_p95_ms"] <= row["ttft_p99_ms"]
        assert row["num_utterances"] >= 1
    assert (load["kv_mb"] == load["kv_mb_unshared"]) == (attention == "auto")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("tick", "--changed", "9", "--blocks", "8"), "--changed 9: there are 8 blocks (--blocks)"),
        (("load", "--rates", "0"), "--rates have to be above 0"),
        (("ttft", "--config", "huge"), "--config 'huge' is unknown; there are llama-3.1-8b"),
        (("load", "--rates", "0.5,nan"), "--rates 0.5,nan: numbers are expected, as in 0.5,2"),
        (("ttft", "--lengths", "1,x"), "--lengths 1,x: numbers are expected, as in 0,512,4096"),
        (("decode", "--npcs", "0"), "--npcs has to be at least 1"),
        (("decode", "--shared-tokens", "9000"), "--shared-tokens at most --context-tokens"),
        (("ttft", "--config", "tiny", "--attention", "triton"), "--attention triton runs on a GPU, not on cpu"),
        (("ttft", "--config", "tiny", "--attention", "x"), "attention: 'x'"),
    ],
)
def test_mistakes_are_one_line(arguments: tuple[str, ...], expected: str) -> None:
    """The option, and what to give."""
    result = CliRunner().invoke(app, ["bench", *arguments])
    assert result.exit_code != 0
    assert expected in " ".join(f"{result.output} {result.exception or ''}".split())


def test_a_request_that_fails_ends_a_measurement() -> None:
    """Its error is raised; nobody waits for a token that never comes."""

    class Failing:
        has_work = True

        def submit(self, request: object) -> None:
            pass

        def step(self) -> list[Output]:
            return [FailedOutput(1, ContextOverflowError("too long"))]

    with pytest.raises(ContextOverflowError, match="too long"):
        drain(cast(InferenceEngine, Failing()))
    with pytest.raises(ContextOverflowError, match="too long"):
        ask(cast(InferenceEngine, Failing()), cast(GenerationRequest, None))
