"""Averaging adapters of one base: often better than any of them (model soups, arXiv 2203.05482)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from npc_engine.errors import TuningError
from npc_engine.inference.adapter import CONFIG_FILE, WEIGHTS_FILE, Adapter, quantized
from npc_engine.inference.json_file import read_json


def average(folders: Sequence[Path], output: Path, *, rank: int) -> float:
    """Write the mean of these adapters as an int8 adapter of `rank` into `output`.

    Returns the share of the mean's squared norm that did not fit into the rank. Raises :class:`TuningError` for
    adapters of different bases.
    """
    adapters = [Adapter.open(folder) for folder in folders]
    configs = [read_json(folder / CONFIG_FILE) for folder in folders]
    bases = {config.get("base_model_fingerprint") for config in configs}
    if len(bases) > 1 or len({frozenset(adapter.modules) for adapter in adapters}) > 1:
        raise TuningError(f"{folders[0]} and the others change different models; average adapters of one base")
    tensors: dict[str, Tensor] = {}
    lost = []
    for module in adapters[0].modules:
        pairs = [adapter.factors(module) for adapter in adapters]
        b, a, loss = _truncated([(a, b / len(pairs)) for a, b in pairs], rank)
        tensors[f"{module}.lora_A.weight"], tensors[f"{module}.lora_B.weight"] = a, b
        lost.append(loss)
    output.mkdir(parents=True, exist_ok=True)
    save_file(quantized(tensors), output / WEIGHTS_FILE)
    config: dict[str, Any] = {**configs[0], "r": rank, "lora_alpha": rank, "use_rslora": False}
    (output / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
    return sum(lost) / len(lost)


def _truncated(factors: Sequence[tuple[Tensor, Tensor]], rank: int) -> tuple[Tensor, Tensor, float]:
    """The best sum of `rank` outer products for the sum of all ``b @ a``: b, a, and the share that is lost."""
    b = torch.cat([each for _, each in factors], dim=1)
    a = torch.cat([each for each, _ in factors], dim=0)
    left, r_left = torch.linalg.qr(b)
    right, r_right = torch.linalg.qr(a.T)
    u, singular, v = torch.linalg.svd(r_left @ r_right.T)
    root = singular[:rank].sqrt()
    energy = singular.square()
    lost = float(energy[rank:].sum() / energy.sum().clamp_min(1e-30))
    return ((left @ u[:, :rank]) * root).contiguous(), ((right @ v.T[:, :rank]) * root).T.contiguous(), lost
