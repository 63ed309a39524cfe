"""Rotary tables and frequencies, against transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from npc_engine.blocks.positions import rotate, shift
from npc_engine.inference.model_config import ModelConfig
from npc_engine.inference.rope import RotaryTable, inverse_frequencies
from tests.inference.builders import ROPE, tiny_checkpoint

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=sorted(ROPE))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("rope"), rope=request.param)


def table_of(folder: Path) -> RotaryTable:
    config = ModelConfig.from_dict(json.loads((folder / "config.json").read_text()))
    return RotaryTable(config.rope, config.head_dim, CPU)


def test_tables_equal_those_of_transformers(folder: Path) -> None:
    """Every type of scaling, over 3,000 positions; ours hold the rotation's sign in the first half of the sines."""
    theirs = LlamaRotaryEmbedding(AutoConfig.from_pretrained(folder))
    cos, sin = theirs(torch.empty(0), torch.arange(3000)[None])
    ours = table_of(folder).at([(0, 3000)])
    first, second = sin[0].chunk(2, dim=-1)
    torch.testing.assert_close(ours[0][:, 0], cos[0], atol=2e-4, rtol=0)
    torch.testing.assert_close(ours[1][:, 0], torch.cat((-first, second), dim=-1), atol=2e-4, rtol=0)


def test_spans_are_rows_one_behind_the_other(folder: Path) -> None:
    """Also when the table has to grow in between; what was handed out stays."""
    table = table_of(folder)
    early = table.at([(5, 8)])[0].clone()
    cos, sin = table.at([(5, 8), (2000, 2002), (0, 1)])
    assert cos.shape == sin.shape == (6, 1, 2 * table.inv_freq.numel())
    whole = table.at([(0, 2002)])
    rows = [5, 6, 7, 2000, 2001, 0]
    assert torch.equal(cos, whole[0][rows])
    assert torch.equal(sin, whole[1][rows])
    assert torch.equal(early, cos[:3])


@settings(deadline=None, max_examples=30)
@given(position=st.integers(0, 4000), delta=st.integers(-4000, 4000))
def test_moving_a_key_is_rotating_it_for_where_it_goes(position: int, delta: int) -> None:
    """Rotations add up, YaRN's scaling is applied once, and moving back gives the key again."""
    torch.manual_seed(position)
    config = ModelConfig.from_dict(CONFIG_YARN)
    table = RotaryTable(config.rope, config.head_dim, CPU)
    k = torch.randn(1, 2, config.head_dim)
    goal = max(0, position + delta)
    delta = goal - position
    at_start = rotate(k, *table.at([(position, position + 1)]))
    at_goal = rotate(k, *table.at([(goal, goal + 1)]))
    torch.testing.assert_close(shift(at_start, delta, table.inv_freq), at_goal, atol=3e-3, rtol=0)
    there_and_back = shift(shift(at_start, delta, table.inv_freq), -delta, table.inv_freq)
    torch.testing.assert_close(there_and_back, at_start, atol=1e-5, rtol=0)
    assert shift(at_start, 0, table.inv_freq) is at_start


CONFIG_YARN = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "vocab_size": 400,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_parameters": ROPE["yarn"],
}


def test_plain_frequencies(folder: Path) -> None:
    """The first pair turns one radian per position, the last one slowest."""
    config = ModelConfig.from_dict(json.loads((folder / "config.json").read_text()))
    frequencies = inverse_frequencies(config.rope, config.head_dim)
    assert frequencies.shape == (config.head_dim // 2,)
    assert frequencies.dtype == torch.float32
    assert bool((frequencies.diff() < 0).all())
