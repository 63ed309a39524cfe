"""GGUF conversion is undone exactly: a tiny checkpoint written as GGUF comes back as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from npc_engine.errors import ModelError, UnsupportedModelError
from npc_engine.inference.chat_template import ChatTemplate
from npc_engine.inference.checkpoint import resolve
from npc_engine.inference.model_config import ModelConfig
from npc_engine.inference.tokenizer import Tokenizer
from tests.inference.builders import ROPE, Family, byte_level_tokenizer_json, tiny_checkpoint

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(folder: Path, path: Path, **changes: Any) -> None:
    """The checkpoint in `folder` as llama.cpp's converter writes it; `changes` override or remove (None) metadata."""
    config = json.loads((folder / "config.json").read_text())
    family = "llama" if config["model_type"] in ("llama", "mistral") else config["model_type"]
    tokens = json.loads(byte_level_tokenizer_json())["model"]
    metadata: dict[str, Any] = {
        f"{family}.context_length": config["max_position_embeddings"],
        f"{family}.embedding_length": config["hidden_size"],
        f"{family}.block_count": config["num_hidden_layers"],
        f"{family}.feed_forward_length": config["intermediate_size"],
        f"{family}.attention.head_count": config["num_attention_heads"],
        f"{family}.attention.head_count_kv": config["num_key_value_heads"],
        f"{family}.attention.key_length": config.get("head_dim", 16),
        f"{family}.attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        f"{family}.rope.freq_base": config["rope_parameters"]["rope_theta"],
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": sorted(tokens["vocab"], key=tokens["vocab"].__getitem__),
        "tokenizer.ggml.token_type": [3] * 3 + [1] * 397,
        "tokenizer.ggml.merges": [" ".join(merge) for merge in tokens["merges"]],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": json.loads((folder / "tokenizer_config.json").read_text())["chat_template"],
    }
    writer = gguf.GGUFWriter(path, changes.pop("architecture", family))
    factors = changes.pop("rope_factors", None)
    for key, value in (metadata | changes).items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif value is not None:
            writer.add_uint32(key, value)
    for name, tensor in load_file(folder / "model.safetensors").items():
        stem, _, kind = name.rpartition(".")
        layer = ""
        if stem.startswith("model.layers."):
            _, _, index, stem = stem.split(".", 3)
            layer = f"blk.{index}."
        heads = {"self_attn.q_proj": config["num_attention_heads"], "self_attn.k_proj": config["num_key_value_heads"]}
        if family == "llama" and stem in heads:
            tensor = tensor.reshape(heads[stem], 2, -1, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape)
        writer.add_tensor(f"{layer}{NAMES[stem]}.{kind}", tensor.contiguous().numpy())
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", factors)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "smollm"])
def test_comes_back_as_it_was(tmp_path: Path, family: Family) -> None:
    """Weights to float16, config, tokens and template pieces: all as in the checkpoint it was made from."""
    folder = tiny_checkpoint(tmp_path, family)
    write_gguf(folder, tmp_path / "tiny.gguf")
    stages: list[str] = []
    checkpoint = resolve(str(tmp_path / "tiny.gguf"), tmp_path / "cache", on_stage=stages.append)
    assert stages == ["converting tiny.gguf, once"]
    assert resolve(str(tmp_path / "tiny.gguf"), tmp_path / "cache", on_stage=stages.append) == checkpoint
    assert len(stages) == 1

    original = load_file(folder / "model.safetensors")
    converted = load_file(checkpoint.folder / "model.safetensors")
    assert converted.keys() == original.keys()
    for name, tensor in original.items():
        assert torch.equal(converted[name].float(), tensor if tensor.ndim == 1 else tensor.half().float()), name
    expected = ModelConfig.from_dict(json.loads((folder / "config.json").read_text()))
    found = ModelConfig.from_dict(checkpoint.config)
    if family == "mistral":  # the same function under the name that GGUF keeps
        assert found.architecture == "LlamaForCausalLM"
    else:
        assert found == expected
    ours, theirs = Tokenizer(checkpoint.folder), Tokenizer(folder)
    text = "The innkeeper's 12 wolves, żółć!"
    assert ours.encode_text(text) == theirs.encode_text(text)
    assert ours.control_ids == theirs.control_ids
    assert ChatTemplate.load(checkpoint.folder, ours) == ChatTemplate.load(folder, theirs)
    transformers.AutoModelForCausalLM.from_pretrained(checkpoint.folder)


def test_rope_scaling(tmp_path: Path) -> None:
    """Linear and YaRN by name; Llama-3 from its divisors, if they are those of Llama 3."""
    folder = tiny_checkpoint(tmp_path, "llama")

    def rope(name: str, **changes: Any) -> Any:
        write_gguf(folder, tmp_path / name, **changes)
        return ModelConfig.from_dict(resolve(str(tmp_path / name), tmp_path / "cache").config).rope

    scaling = {"llama.rope.scaling.factor": 2.0, "llama.rope.scaling.original_context_length": 128}
    assert rope("linear.gguf", **scaling | {"llama.rope.scaling.type": "linear"}).type == "linear"
    yarn = rope("yarn.gguf", **scaling | {"llama.rope.scaling.type": "yarn"})
    assert (yarn.type, yarn.factor, yarn.original_max_position_embeddings) == ("yarn", 2.0, 128)

    parameters = ROPE["llama3"] | {"original_max_position_embeddings": 8192}
    config = transformers.LlamaConfig(head_dim=16, rope_parameters=dict(parameters), max_position_embeddings=131072)
    frequencies, _ = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 10000.0 ** (-np.arange(0, 16, 2) / 16)
    factors = (plain / frequencies.numpy()).astype(np.float32)
    llama3 = rope("llama3.gguf", rope_factors=factors)
    assert (llama3.type, llama3.factor, llama3.low_freq_factor, llama3.high_freq_factor) == ("llama3", 8.0, 1.0, 4.0)
    assert llama3.original_max_position_embeddings == 8192
    with pytest.raises(UnsupportedModelError, match=r"rope_freqs\.weight"):
        rope("other.gguf", rope_factors=np.full(8, 2.0, dtype=np.float32))
    with pytest.raises(UnsupportedModelError, match="longrope"):
        rope("longrope.gguf", **scaling | {"llama.rope.scaling.type": "longrope"})


def test_sentencepiece_vocabulary(tmp_path: Path) -> None:
    """Scores imply the merges; unknown and control tokens can't be written by a text."""
    folder = tiny_checkpoint(tmp_path, "mistral")
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁helo<s>/", "▁h", "el", "▁hel"]
    tokens = list(dict.fromkeys([*tokens, "lo", "▁hello"]))
    tokens += [f"unused{i}" for i in range(400 - len(tokens))]
    types = [2, 3, 3] + [6] * 256 + [1] * 141
    scores = [float(-i) for i in range(400)]
    changes = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.scores": scores}
    changes |= {"tokenizer.ggml.token_type": types, "tokenizer.ggml.pre": None, "tokenizer.ggml.merges": None}
    write_gguf(folder, tmp_path / "tiny.gguf", **changes)
    tokenizer = Tokenizer(resolve(str(tmp_path / "tiny.gguf"), tmp_path / "cache").folder)
    assert tokenizer.encode_text("hello") == [tokens.index("▁hello")]
    assert tokenizer.encode_template("<s>hello")[0] == 1
    assert tokenizer.control_ids.isdisjoint(tokenizer.encode_text("<s>hello</s><unk>"))
    assert tokenizer.decode(tokenizer.encode_text("hello ż </s>")) == "hello ż </s>"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"architecture": "gemma2"}, "gemma2"),
        ({"llama.expert_count": 8}, "mixtures of experts"),
        ({"tokenizer.ggml.pre": "unheard-of"}, "unheard-of"),
        ({"tokenizer.ggml.model": "bert"}, "bert"),
        ({"llama.rope.dimension_count": 8}, "part of each head"),
        ({"llama.block_count": None}, "block_count is missing"),
        ({"llama.block_count": "three"}, "block_count must be of type int"),
    ],
)
def test_what_was_not_verified_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    write_gguf(tiny_checkpoint(tmp_path), tmp_path / "tiny.gguf", **changes)
    with pytest.raises(ModelError, match=named) as caught:
        resolve(str(tmp_path / "tiny.gguf"), tmp_path / "cache")
    assert str(caught.value).startswith(str(tmp_path / "tiny.gguf"))
    assert list((tmp_path / "cache" / "tmp").iterdir()) == []
    assert not (tmp_path / "cache" / "converted").exists()


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.99])
def test_a_file_cut_short_is_refused(tmp_path: Path, share: float) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(tiny_checkpoint(tmp_path), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ModelError, match=r"tiny\.gguf"):
        resolve(str(path), tmp_path / "cache")
