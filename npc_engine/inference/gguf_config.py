"""A transformers ``config.json`` from the metadata of a GGUF file."""

from __future__ import annotations

from typing import Any, Final

import gguf
import numpy as np

from npc_engine.inference.gguf_file import GgufFile

# Mistral's GGUF files call themselves llama: the function is the same
_ARCHITECTURES: Final = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}


def make_config(file: GgufFile) -> dict[str, Any]:
    """The config that the decoder and transformers need to run `file`'s weights.

    Raises :class:`UnsupportedModelError` for an architecture or RoPE type that was not verified,
    :class:`ModelError` for missing metadata.
    """
    family = file.architecture
    if family not in _ARCHITECTURES:
        file.refuse(f"architecture {family!r} was not verified; supported are {', '.join(_ARCHITECTURES)}")
    if file.find(f"{family}.expert_count", int):
        file.refuse("mixtures of experts were not verified")
    names = {tensor.name for tensor in file.tensors()}
    num_heads = file.get(f"{family}.attention.head_count", int)
    hidden_size = file.get(f"{family}.embedding_length", int)
    head_dim = file.find(f"{family}.attention.key_length", int) or hidden_size // num_heads
    if (file.find(f"{family}.rope.dimension_count", int) or head_dim) != head_dim:
        file.refuse("RoPE over a part of each head was not verified")
    bos = file.find("tokenizer.ggml.bos_token_id", int)
    eos = [
        token_id for key in ("eos", "eot") if (token_id := file.find(f"tokenizer.ggml.{key}_token_id", int)) is not None
    ]
    config: dict[str, Any] = {
        "architectures": [_ARCHITECTURES[family]],
        "model_type": family,
        "vocab_size": len(file.get("tokenizer.ggml.tokens", list)),
        "hidden_size": hidden_size,
        "intermediate_size": file.get(f"{family}.feed_forward_length", int),
        "num_hidden_layers": file.get(f"{family}.block_count", int),
        "num_attention_heads": num_heads,
        "num_key_value_heads": file.find(f"{family}.attention.head_count_kv", int) or num_heads,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": _shortest(file.get(f"{family}.attention.layer_norm_rms_epsilon", float)),
        "max_position_embeddings": file.get(f"{family}.context_length", int),
        "tie_word_embeddings": "output.weight" not in names,
        "rope_parameters": _rope(file, family, head_dim),
        "bos_token_id": bos,
        "eos_token_id": sorted(set(eos)) if len(set(eos)) > 1 else eos[0] if eos else None,
    }
    if family == "llama":
        config["attention_bias"] = "blk.0.attn_output.bias" in names
        config["mlp_bias"] = "blk.0.ffn_down.bias" in names
    return config


def _rope(file: GgufFile, family: str, head_dim: int) -> dict[str, Any]:
    prefix = f"{family}.rope"
    theta = _shortest(file.find(f"{prefix}.freq_base", float) or 10_000.0)
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    factors = next((tensor for tensor in file.tensors() if tensor.name == "rope_freqs.weight"), None)
    if factors is not None:
        return rope | _llama3(file, gguf.dequantize(factors.data, factors.tensor_type), theta, head_dim)
    kind = file.find(f"{prefix}.scaling.type", str) or "none"
    if kind == "none":
        return rope
    if kind not in ("linear", "yarn"):
        file.refuse(f"RoPE scaling {kind!r} was not verified; supported are none, linear, yarn")
    rope |= {"rope_type": kind, "factor": _shortest(file.get(f"{prefix}.scaling.factor", float))}
    original = file.find(f"{prefix}.scaling.original_context_length", int)
    if kind == "yarn" and original:
        rope["original_max_position_embeddings"] = original
    return rope


def _llama3(file: GgufFile, factors: np.ndarray[Any, Any], theta: float, head_dim: int) -> dict[str, Any]:
    """Llama-3 scaling, of which GGUF keeps only the divisor of each frequency.

    Every published Llama 3 has low and high factors 1 and 4 over 8192 positions, and the largest divisor is the
    factor. With these the divisors are computed again, and must come out as they are in the file.
    """
    factor, low, high, original = round(float(factors.max()), 3), 1.0, 4.0, 8192
    frequencies = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    turns = original * frequencies / (2 * np.pi)
    kept = np.clip((turns - low) / (high - low), 0, 1)
    expected = 1 / ((1 - kept) / factor + kept)
    if factors.shape != expected.shape or not np.allclose(factors, expected, rtol=1e-3):
        file.refuse("rope_freqs.weight is not Llama-3 scaling, and nothing else was verified")
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


def _shortest(value: float) -> float:
    """The shortest decimal that is the same float32: GGUF turned 1e-5 into 9.999999747378752e-06."""
    return float(str(np.float32(value)))
