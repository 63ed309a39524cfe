"""ModelConfig reads what transformers writes and refuses what the decoder was not verified with."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import transformers

from npc_engine.errors import ModelError, UnsupportedModelError
from npc_engine.inference.model_config import SUPPORTED_ARCHITECTURES, ModelConfig
from npc_engine.inference.rope_config import RopeConfig
from tests.inference.builders import FAMILIES, ROPE, Family, tiny_checkpoint

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 400,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}


def parse(**changes: Any) -> ModelConfig:
    return ModelConfig.from_dict(LLAMA | changes)


@pytest.mark.parametrize("family", FAMILIES)
def test_reads_every_family_as_transformers_writes_it(tmp_path: Path, family: Family) -> None:
    """Shapes, biases and norms agree with the tensors that transformers made."""
    folder = tiny_checkpoint(tmp_path, family)
    config = ModelConfig.from_dict(json.loads((folder / "config.json").read_text()))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tensors = model.state_dict()
    attention, mlp = "model.layers.0.self_attn.", "model.layers.0.mlp."
    assert tensors[attention + "q_proj.weight"].shape == (config.num_heads * config.head_dim, config.hidden_size)
    assert tensors[attention + "k_proj.weight"].shape == (config.num_kv_heads * config.head_dim, config.hidden_size)
    assert tensors[mlp + "up_proj.weight"].shape == (config.intermediate_size, config.hidden_size)
    assert len(model.model.layers) == config.num_layers
    assert (attention + "q_proj.bias" in tensors) == config.qkv_bias == (family == "qwen2")
    assert (attention + "o_proj.bias" in tensors) == config.o_bias
    assert (attention + "q_norm.weight" in tensors) == config.qk_norm == (family == "qwen3")
    assert config.tie_word_embeddings == (family == "smollm")
    assert (config.bos_token_id, config.eos_token_ids) == (1, (2,))
    assert config.max_position_embeddings == 512


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
def test_missing_keys_mean_what_transformers_takes_them_to_mean(model_type: str) -> None:
    """A config with only the required keys gives transformers' defaults."""
    given = {key: value for key, value in LLAMA.items() if key != "architectures"} | {"num_attention_heads": 32}
    given |= {"hidden_size": 2048}
    ours = ModelConfig.from_dict(given | {"model_type": model_type})
    theirs = transformers.AutoConfig.for_model(model_type, **given)
    assert ours.num_kv_heads == theirs.num_key_value_heads
    assert ours.head_dim == getattr(theirs, "head_dim", 2048 // 32)
    assert ours.rms_norm_eps == theirs.rms_norm_eps
    assert ours.rope.theta == theirs.rope_parameters["rope_theta"]
    assert ours.tie_word_embeddings == theirs.tie_word_embeddings
    assert ours.sliding_window == getattr(theirs, "sliding_window", None)
    assert ours.max_position_embeddings == min(theirs.max_position_embeddings, ours.sliding_window or 1 << 30)


def test_llama_biases() -> None:
    """Llama's two bias options reach q, k, v and o, and the MLP."""
    config = parse(attention_bias=True, mlp_bias=True)
    assert (config.qkv_bias, config.o_bias, config.mlp_bias) == (True, True, True)
    assert (parse().qkv_bias, parse().o_bias, parse().mlp_bias) == (False, False, False)


@pytest.mark.parametrize("name", sorted(ROPE))
def test_rope_is_read_alike_from_both_spellings(name: str) -> None:
    """``rope_parameters`` of transformers 5 and the older ``rope_theta`` with ``rope_scaling`` give the same."""
    new = parse(rope_parameters=ROPE[name], max_position_embeddings=512)
    scaling = {key: value for key, value in ROPE[name].items() if key != "rope_theta"}
    scaling["type"] = scaling.pop("rope_type")
    old = parse(rope_theta=10000.0, rope_scaling=scaling, max_position_embeddings=512)
    assert new == old
    assert new.rope.type == name


def test_yarn_attention_factor_is_final() -> None:
    """It comes from `factor`, from mscale, or from the config, in transformers' order."""
    yarn = ROPE["yarn"]
    assert parse(rope_parameters=yarn).rope.attention_factor == 0.1 * math.log(4) + 1
    assert parse(rope_parameters=yarn | {"mscale": 2.0, "mscale_all_dim": 1.0}).rope.attention_factor == pytest.approx(
        (0.2 * math.log(4) + 1) / (0.1 * math.log(4) + 1)
    )
    assert parse(rope_parameters=yarn | {"attention_factor": 1.5}).rope.attention_factor == 1.5
    without_factor = {key: value for key, value in yarn.items() if key != "factor"}
    assert parse(rope_parameters=without_factor, max_position_embeddings=1024).rope.factor == 8.0


def test_original_length_defaults_to_the_models_own() -> None:
    """llama3 and yarn scale from max_position_embeddings where no original length stands."""
    llama3 = {key: value for key, value in ROPE["llama3"].items() if not key.startswith("original")}
    assert parse(rope_parameters=llama3, max_position_embeddings=256).rope.original_max_position_embeddings == 256


def test_default_rope_without_any_key() -> None:
    assert parse().rope == RopeConfig(theta=10000.0)


@pytest.mark.parametrize(
    ("changes", "window", "max_positions"),
    [
        ({"architectures": ["MistralForCausalLM"], "sliding_window": None}, None, 8192),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": 1024}, 1024, 1024),
        ({"architectures": ["MistralForCausalLM"]}, 4096, 4096),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": 32768}, 32768, 8192),
        ({"architectures": ["Qwen2ForCausalLM"], "sliding_window": 1024}, None, 8192),
        ({"architectures": ["Qwen2ForCausalLM"], "sliding_window": 1024, "use_sliding_window": True}, None, 8192),
        (
            {
                "architectures": ["Qwen2ForCausalLM"],
                "sliding_window": 1024,
                "use_sliding_window": True,
                "max_window_layers": 2,
            },
            1024,
            1024,
        ),
        (
            {
                "architectures": ["Qwen3ForCausalLM"],
                "sliding_window": 1024,
                "use_sliding_window": True,
                "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            },
            1024,
            1024,
        ),
    ],
)
def test_a_sliding_window_caps_the_positions(changes: dict[str, Any], window: int | None, max_positions: int) -> None:
    """Up to the window's length sliding attention is full attention; a window that no layer uses caps nothing."""
    config = parse(max_position_embeddings=8192, num_key_value_heads=4, **changes)
    assert (config.sliding_window, config.max_position_embeddings) == (window, max_positions)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"architectures": ["GemmaForCausalLM"]}, "GemmaForCausalLM"),
        ({"architectures": ["MixtralForCausalLM"]}, "MixtralForCausalLM"),
        ({"architectures": None, "model_type": "gpt2"}, "gpt2"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"rope_scaling": {"type": "longrope", "factor": 2.0}}, "longrope"),
        ({"rope_parameters": {"rope_type": "proportional"}}, "proportional"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "differs between layers"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"partial_rotary_factor": 0.25}, "partial_rotary_factor"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"quantization_config": {"quant_method": "awq"}}, "awq"),
        ({"num_local_experts": 8}, "num_local_experts"),
        (
            {"architectures": ["Qwen3ForCausalLM"], "use_sliding_window": True, "layer_types": ["chunked_attention"]},
            "layer_types",
        ),
    ],
)
def test_what_was_not_verified_is_refused_by_name(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedModelError, match=named) as caught:
        parse(num_key_value_heads=4, **changes)
    assert "\n" not in str(caught.value)


def test_an_unknown_architecture_lists_the_supported_ones() -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        parse(architectures=["FooModel"])
    assert all(name in str(caught.value) for name in SUPPORTED_ARCHITECTURES)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"vocab_size": None}, "vocab_size is missing"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_attention_heads": True}, "num_attention_heads"),
        ({"num_key_value_heads": 3}, "num_key_value_heads 3"),
        ({"head_dim": 15}, "head_dim"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"eos_token_id": ["x"]}, "eos_token_id"),
        ({"rope_parameters": [1]}, "rope_parameters"),
        ({"rope_parameters": {"rope_type": "linear"}}, "factor is missing"),
        ({"rope_parameters": ROPE["llama3"] | {"low_freq_factor": 4.0}}, "low_freq_factor"),
        ({"rope_theta": -1}, "rope_theta"),
        ({"rope_parameters": ROPE["yarn"] | {"original_max_position_embeddings": 0}}, "original_max_position"),
    ],
)
def test_impossible_values_are_named(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelError, match=named) as caught:
        parse(**changes)
    assert str(caught.value).startswith("config.json: ")
