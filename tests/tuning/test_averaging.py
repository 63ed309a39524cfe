"""The mean of adapters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from npc_engine.errors import TuningError
from npc_engine.inference import Adapter
from npc_engine.tuning.averaging import average

MODULE = "base_model.model.model.layers.0.mlp.up_proj"


def adapter(folder: Path, seed: int, base: str = "b") -> Path:
    folder.mkdir()
    generator = torch.Generator().manual_seed(seed)
    shapes = {"lora_A": (4, 24), "lora_B": (40, 4)}
    tensors = {f"{MODULE}.{name}.weight": torch.randn(*shape, generator=generator) for name, shape in shapes.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_fingerprint": base}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def change(folder: Path) -> torch.Tensor:
    return Adapter.open(folder).merged("model.layers.0.mlp.up_proj.weight", torch.zeros(40, 24))


def test_the_mean_changes_weights_by_the_mean(tmp_path: Path) -> None:
    """Exactly, up to int8, where the rank suffices; what a smaller rank loses is reported."""
    folders = [adapter(tmp_path / str(seed), seed) for seed in range(2)]
    expected = (change(folders[0]) + change(folders[1])) / 2
    assert average(folders, tmp_path / "mean", rank=8) == pytest.approx(0, abs=1e-6)
    assert (change(tmp_path / "mean") - expected).norm() < 0.02 * expected.norm()
    lost = average(folders, tmp_path / "small", rank=2)
    assert lost == pytest.approx(float((change(tmp_path / "small") - expected).norm() / expected.norm()) ** 2, rel=0.05)


def test_adapters_of_different_models_have_no_mean(tmp_path: Path) -> None:
    """One line."""
    folders = [adapter(tmp_path / "a", 0), adapter(tmp_path / "b", 1, base="other")]
    with pytest.raises(TuningError, match="change different models"):
        average(folders, tmp_path / "mean", rank=4)
