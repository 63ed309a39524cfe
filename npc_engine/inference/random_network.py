"""Networks of well-known shapes with random weights: for measurements that need no checkpoint."""

from __future__ import annotations

from typing import Any, Final

from npc_engine.blocks import ModelIdentity
from npc_engine.errors import ModelError
from npc_engine.inference.decoder import Decoder
from npc_engine.inference.model import Network, available_processors, pick_device, pick_dtype
from npc_engine.inference.model_config import ModelConfig
from npc_engine.inference.rope import RotaryTable
from npc_engine.inference.weights import random_weights

SHAPES: Final[dict[str, dict[str, Any]]] = {
    "llama-3.1-8b": {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
    "llama-3.2-1b": {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
    "smollm2-135m": {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100000.0,
        "tie_word_embeddings": True,
    },
    "tiny": {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-5,
    },
}


def random_network(
    shape: str, *, device: str, dtype: str | None, num_threads: int | None = None, seed: int = 0
) -> Network:
    """A network of one of :data:`SHAPES`. Raises :class:`ModelError` for another name, device or dtype."""
    if shape not in SHAPES:
        raise ModelError(f"--config {shape!r} is unknown; there are {', '.join(SHAPES)}")
    config = ModelConfig.from_dict(SHAPES[shape], shape)
    torch_device = pick_device(device)
    torch_dtype = pick_dtype(dtype, torch_device)
    weights = random_weights(config, device=torch_device, dtype=torch_dtype, seed=seed)
    return Network(
        name=f"{shape}, random weights",
        config=config,
        decoder=Decoder(config, weights),
        rope=RotaryTable(config.rope, config.head_dim, torch_device),
        identity=ModelIdentity(f"random {shape} {seed}", None, str(torch_dtype), repr(config.rope)),
        num_threads=num_threads or available_processors(),
    )
