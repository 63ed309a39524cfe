"""Reading and fusing weights, and refusing what does not fit the configuration."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from npc_engine.errors import ModelError
from npc_engine.inference.model_config import ModelConfig
from npc_engine.inference.weights import Weights, load_weights
from tests.inference.builders import FAMILIES, Family, tiny_checkpoint


def read(folder: Path, dtype: torch.dtype = torch.float32, **options: Callable[[int, int], None]) -> Weights:
    config = ModelConfig.from_dict(json.loads((folder / "config.json").read_text()))
    return load_weights([folder / "model.safetensors"], config, device=torch.device("cpu"), dtype=dtype, **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_is_read_once(tmp_path: Path, family: Family) -> None:
    """As many as transformers counts, tied ones once; progress is told layer by layer."""
    folder = tiny_checkpoint(tmp_path, family=family)
    progress: list[tuple[int, int]] = []
    weights = read(folder, on_progress=lambda done, total: progress.append((done, total)))
    assert weights.num_parameters == AutoModelForCausalLM.from_pretrained(folder).num_parameters()
    assert progress == [(1, 3), (2, 3), (3, 3)]


def test_another_precision(tmp_path: Path) -> None:
    """Everything is converted."""
    weights = read(tiny_checkpoint(tmp_path), torch.bfloat16)
    assert {weights.embedding.dtype, weights.final_norm.dtype} == {torch.bfloat16}
    assert {layer.input_norm.dtype for layer in weights.layers} == {torch.bfloat16}


NORM = "model.layers.1.post_attention_layernorm.weight"


def lose(tensors: dict[str, Tensor]) -> None:
    del tensors[NORM]


def shorten(tensors: dict[str, Tensor]) -> None:
    tensors[NORM] = tensors[NORM][:-1].clone()


@pytest.mark.parametrize(("change", "message"), [(lose, "is missing"), (shorten, r"is \[63\].*says \[64\]")])
def test_a_tensor_that_does_not_fit_is_named(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], None], message: str
) -> None:
    """Folder, tensor, and what is wrong with it."""
    folder = tiny_checkpoint(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=rf"{folder.name}: tensor {NORM} {message}"):
        read(folder)
