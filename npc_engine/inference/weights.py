"""The decoder's weights, read from safetensors and fused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from npc_engine.errors import ModelError
from npc_engine.inference.adapter import Adapter
from npc_engine.inference.linear import GatedLinear, Linear, gated_linear, linear
from npc_engine.inference.model_config import ModelConfig


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer. Queries, keys and values are one projection: [hidden] → [(heads + 2 * kv_heads) * head_dim].

    Norms are vectors: [hidden], and [head_dim] for those of queries and keys (Qwen3).
    """

    input_norm: Tensor
    qkv: Linear
    q_norm: Tensor | None
    k_norm: Tensor | None
    o: Linear
    post_norm: Tensor
    gate_up: GatedLinear
    down: Linear


@dataclass(frozen=True, slots=True)
class Weights:
    """`embedding`: [vocab, hidden]. `num_parameters` counts a tied embedding once."""

    embedding: Tensor
    layers: tuple[LayerWeights, ...]
    final_norm: Tensor
    lm_head: Linear
    num_parameters: int


def load_weights(
    files: Sequence[Path],
    config: ModelConfig,
    *,
    device: torch.device,
    dtype: torch.dtype,
    adapter: Adapter | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Weights:
    """Read safetensors files. They are memory-mapped; a tensor is converted as it is read, `adapter` merged into it.

    `on_progress` gets (layers read, layers). Raises :class:`ModelError` for a tensor that is missing or has another
    shape.
    """
    handles = [safe_open(file, framework="pt") for file in files]
    handle_of = {name: handle for handle in handles for name in handle.keys()}  # noqa: SIM118 - not a dict
    folder = files[0].parent
    if adapter is not None:
        adapter.check_names(set(handle_of))

    def read(name: str, *shape: int) -> Tensor:
        if name not in handle_of:
            raise ModelError(f"{folder}: tensor {name} is missing; download the checkpoint again")
        tensor: Tensor = handle_of[name].get_tensor(name)
        if tensor.shape != shape:
            raise ModelError(f"{folder}: tensor {name} is {list(tensor.shape)}, config.json says {list(shape)}")
        if adapter is not None:
            tensor = adapter.merged(name, tensor)
        return tensor.to(device=device, dtype=dtype)

    return _assemble(config, read, on_progress)


def random_weights(config: ModelConfig, *, device: torch.device, dtype: torch.dtype, seed: int = 0) -> Weights:
    """Weights of this shape that say nothing: for measurements that need no checkpoint."""
    generator = torch.Generator(device).manual_seed(seed)

    def read(name: str, *shape: int) -> Tensor:
        if name.endswith("norm.weight"):
            return torch.ones(shape, device=device, dtype=dtype)
        return torch.empty(shape, device=device, dtype=dtype).normal_(0, shape[-1] ** -0.5, generator=generator)

    return _assemble(config, read)


def _assemble(
    config: ModelConfig, read: Callable[..., Tensor], on_progress: Callable[[int, int], None] = lambda done, total: None
) -> Weights:
    """`read` takes a tensor's name and shape."""
    hidden, intermediate = config.hidden_size, config.intermediate_size
    q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim

    def read_linear(names: Sequence[str], sizes: Sequence[int], inputs: int, *, bias: bool) -> Linear:
        weight = torch.cat([read(f"{name}.weight", size, inputs) for name, size in zip(names, sizes, strict=True)])
        biases = [read(f"{name}.bias", size) for name, size in zip(names, sizes, strict=True)] if bias else None
        return linear(weight, torch.cat(biases) if biases else None)

    def read_gated(mlp: str) -> GatedLinear:
        gate, up = (read(f"{mlp}.{name}_proj.weight", intermediate, hidden) for name in ("gate", "up"))
        if not config.mlp_bias:
            return gated_linear(gate, up)
        return gated_linear(gate, up, *(read(f"{mlp}.{name}_proj.bias", intermediate) for name in ("gate", "up")))

    def read_layer(index: int) -> LayerWeights:
        prefix = f"model.layers.{index}"
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        qkv = [f"{attention}.{name}_proj" for name in "qkv"]
        return LayerWeights(
            input_norm=read(f"{prefix}.input_layernorm.weight", hidden),
            qkv=read_linear(qkv, [q_size, kv_size, kv_size], hidden, bias=config.qkv_bias),
            q_norm=read(f"{attention}.q_norm.weight", config.head_dim) if config.qk_norm else None,
            k_norm=read(f"{attention}.k_norm.weight", config.head_dim) if config.qk_norm else None,
            o=read_linear([f"{attention}.o_proj"], [hidden], q_size, bias=config.o_bias),
            post_norm=read(f"{prefix}.post_attention_layernorm.weight", hidden),
            gate_up=read_gated(mlp),
            down=read_linear([f"{mlp}.down_proj"], [hidden], intermediate, bias=config.mlp_bias),
        )

    embedding = read("model.embed_tokens.weight", config.vocab_size, hidden)
    layers = []
    for index in range(config.num_layers):
        layers.append(read_layer(index))
        on_progress(index + 1, config.num_layers)
    final_norm = read("model.norm.weight", hidden)
    is_tied = config.tie_word_embeddings
    lm_head = linear(embedding) if is_tied else read_linear(["lm_head"], [config.vocab_size], hidden, bias=False)
    num_parameters = embedding.numel() + final_norm.numel() + sum(_num_parameters(layer) for layer in layers)
    return Weights(
        embedding, tuple(layers), final_norm, lm_head, num_parameters + (0 if is_tied else lm_head.num_parameters)
    )


def _num_parameters(layer: LayerWeights) -> int:
    norms = (layer.input_norm, layer.q_norm, layer.k_norm, layer.post_norm)
    projections = (layer.qkv, layer.o, layer.gate_up, layer.down)
    return sum(norm.numel() for norm in norms if norm is not None) + sum(each.num_parameters for each in projections)
