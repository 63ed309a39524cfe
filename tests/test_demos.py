"""Every demo that ships can be watched without a model, and comes out again with the default one."""

from __future__ import annotations

from pathlib import Path

import pytest

from npc_engine.config import default_cache_dir
from npc_engine.runtime.recording import read_recording
from tests.cli.cli_harness import ROOT, last_json, succeed

DEMOS = sorted(path.parent for path in (ROOT / "demos").glob("*/README.md"))


@pytest.mark.parametrize("demo", DEMOS, ids=lambda demo: demo.name)
def test_plays_without_a_model(demo: Path) -> None:
    """The recording is whole, and all that was said in it is shown."""
    recording = read_recording(demo)
    assert recording.damage is None
    result = succeed("replay", demo, "--fast", "--json")
    assert last_json(result.stdout)["num_replies"] == len(list(recording.replies)) > 0
    for reply in recording.replies:
        assert reply.speech in result.stderr


@pytest.mark.model
@pytest.mark.parametrize("demo", DEMOS, ids=lambda demo: demo.name)
def test_verifies_with_the_default_model(demo: Path) -> None:
    """World, blocks and replies come out again in the dtype that this machine computes fastest."""
    result = succeed("replay", demo, "--verify", "--json", "--cache-dir", default_cache_dir())
    summary = last_json(result.stdout)
    assert summary["verified"]
    assert summary["num_unchecked_replies"] == 0
    assert summary["worst_margin"] < summary["margin_limit"]
