"""The decoder's weights, read from safetensors and fused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from npc_engine.errors import ModelError
from npc_engine.inference.model_config import ModelConfig


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer. Projections that read the same input are fused: fewer, larger products.

    `qkv`: [(heads + 2 * kv_heads) * head_dim, hidden]; `o`: [hidden, heads * head_dim]; `gate_up`: [2 * intermediate,
    hidden]; `down`: [hidden, intermediate]; norms and biases are vectors.
    """

    input_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    o: Tensor
    o_bias: Tensor | None
    post_norm: Tensor
    gate_up: Tensor
    gate_up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None


@dataclass(frozen=True, slots=True)
class Weights:
    """`embedding`, `lm_head`: [vocab, hidden], the same tensor where the checkpoint ties them."""

    embedding: Tensor
    layers: tuple[LayerWeights, ...]
    final_norm: Tensor
    lm_head: Tensor

    @property
    def num_parameters(self) -> int:
        tensors = {id(t): t.numel() for t in (self.embedding, self.lm_head, self.final_norm)}
        for layer in self.layers:
            tensors |= {id(t): t.numel() for name in layer.__slots__ if (t := getattr(layer, name)) is not None}
        return sum(tensors.values())


def load_weights(
    files: Sequence[Path],
    config: ModelConfig,
    *,
    device: torch.device,
    dtype: torch.dtype,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Weights:
    """Read safetensors files. They are memory-mapped; a tensor is converted as it is read.

    `on_progress` gets (layers read, layers). Raises :class:`ModelError` for a tensor that is missing or has another
    shape.
    """
    handles = [safe_open(file, framework="pt") for file in files]
    handle_of = {name: handle for handle in handles for name in handle.keys()}  # noqa: SIM118 - not a dict
    folder = files[0].parent

    def read(name: str, *shape: int) -> Tensor:
        if name not in handle_of:
            raise ModelError(f"{folder}: tensor {name} is missing; download the checkpoint again")
        tensor: Tensor = handle_of[name].get_tensor(name)
        if tensor.shape != shape:
            raise ModelError(f"{folder}: tensor {name} is {list(tensor.shape)}, config.json says {list(shape)}")
        return tensor.to(device=device, dtype=dtype)

    hidden, intermediate = config.hidden_size, config.intermediate_size
    q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim

    def read_layer(index: int) -> LayerWeights:
        prefix = f"model.layers.{index}."
        attention, mlp = prefix + "self_attn.", prefix + "mlp."
        qkv = (("q", q_size), ("k", kv_size), ("v", kv_size))
        gate_up = (("gate", intermediate), ("up", intermediate))
        return LayerWeights(
            input_norm=read(prefix + "input_layernorm.weight", hidden),
            qkv=torch.cat([read(f"{attention}{name}_proj.weight", size, hidden) for name, size in qkv]),
            qkv_bias=torch.cat([read(f"{attention}{name}_proj.bias", size) for name, size in qkv])
            if config.qkv_bias
            else None,
            q_norm=read(attention + "q_norm.weight", config.head_dim) if config.qk_norm else None,
            k_norm=read(attention + "k_norm.weight", config.head_dim) if config.qk_norm else None,
            o=read(attention + "o_proj.weight", hidden, q_size),
            o_bias=read(attention + "o_proj.bias", hidden) if config.o_bias else None,
            post_norm=read(prefix + "post_attention_layernorm.weight", hidden),
            gate_up=torch.cat([read(f"{mlp}{name}_proj.weight", size, hidden) for name, size in gate_up]),
            gate_up_bias=torch.cat([read(f"{mlp}{name}_proj.bias", size) for name, size in gate_up])
            if config.mlp_bias
            else None,
            down=read(mlp + "down_proj.weight", hidden, intermediate),
            down_bias=read(mlp + "down_proj.bias", hidden) if config.mlp_bias else None,
        )

    embedding = read("model.embed_tokens.weight", config.vocab_size, hidden)
    layers = []
    for index in range(config.num_layers):
        layers.append(read_layer(index))
        on_progress(index + 1, config.num_layers)
    return Weights(
        embedding=embedding,
        layers=tuple(layers),
        final_norm=read("model.norm.weight", hidden),
        lm_head=embedding if config.tie_word_embeddings else read("lm_head.weight", config.vocab_size, hidden),
    )
