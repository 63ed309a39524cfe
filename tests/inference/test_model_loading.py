"""Loading a model: device, precision, and the identity that every block carries."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from npc_engine.blocks.kv import SeparateKV
from npc_engine.blocks.pages import PagedKV
from npc_engine.errors import ModelError
from npc_engine.inference import Model, load_model, open_memory, resolve
from npc_engine.inference.model import available_processors


def test_a_kernel_that_can_not_run_here_is_named(tiny_model: Model) -> None:
    """And what to give instead."""
    for attention, memory in (("auto", SeparateKV), ("buffers", SeparateKV), ("sdpa", PagedKV)):
        cache, _ = open_memory(tiny_model, attention, max_block_memory=1 << 20, max_context_memory=1 << 20, store=None)
        assert isinstance(cache.memory, memory)
    with pytest.raises(ModelError, match="--attention triton runs on a GPU, not on cpu; try --attention auto"):
        open_memory(tiny_model, "triton", max_block_memory=1 << 20, max_context_memory=1 << 20, store=None)


def test_the_shape_and_identity_of_its_blocks(tiny_model: Model) -> None:
    """What a store is keyed by, and what a block's tensors look like."""
    config = tiny_model.config
    assert tiny_model.kv_shape == (config.num_layers, config.num_kv_heads, config.head_dim, torch.float32)
    assert tiny_model.identity.dtype == "float32"
    assert len(tiny_model.identity.fingerprint) == 64
    assert "10000" in tiny_model.identity.rope


def test_another_precision_is_another_identity(tiny_folder: Path, tiny_model: Model, tmp_path: Path) -> None:
    """Keys of bfloat16 are never taken for those of float32."""
    other = load_model(resolve(str(tiny_folder), tmp_path), device="cpu", dtype="bfloat16", num_threads=1)
    assert other.identity == replace(tiny_model.identity, dtype="bfloat16")
    assert other.kv_shape.dtype == torch.bfloat16
    assert other.identity.digest() != tiny_model.identity.digest()


@pytest.mark.parametrize(
    ("device", "dtype", "message"),
    [("nonsense", None, "device 'nonsense'"), ("cuda:99", None, "--device cpu"), ("cpu", "int8", "dtype 'int8'")],
)
def test_what_can_not_be_used_is_named(
    tiny_folder: Path, tmp_path: Path, device: str, dtype: str | None, message: str
) -> None:
    """One line with the remedy."""
    with pytest.raises(ModelError, match=message) as caught:
        load_model(resolve(str(tiny_folder), tmp_path), device=device, dtype=dtype, num_threads=1)
    assert "\n" not in str(caught.value)


def test_at_least_one_processor_may_be_used() -> None:
    """Whatever the quota is."""
    assert available_processors() >= 1
