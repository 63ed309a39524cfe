"""What a tuning run leaves behind: an adapter folder or a checkpoint, with a model card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn

from npc_engine.inference import Checkpoint
from npc_engine.inference.adapter import CONFIG_FILE, WEIGHTS_FILE, quantized


def save_result(model: nn.Module, checkpoint: Checkpoint, folder: Path, *, int8: bool) -> Path:
    """Write an adapter (LoRA) or a whole checkpoint (all weights) into `folder`; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(model, PeftModel):
        _save_adapter(model, checkpoint, folder, int8=int8)
    else:
        _save_checkpoint(model, checkpoint, folder)
    return folder


def _save_adapter(model: PeftModel, checkpoint: Checkpoint, folder: Path, *, int8: bool) -> None:
    tensors = {name: tensor.detach().cpu() for name, tensor in get_peft_model_state_dict(model).items()}
    stored = quantized(tensors) if int8 else {name: tensor.to(torch.float16) for name, tensor in tensors.items()}
    save_file({name: tensor.contiguous() for name, tensor in stored.items()}, folder / WEIGHTS_FILE)
    config = model.peft_config["default"].to_dict()
    kept = ("peft_type", "task_type", "r", "lora_alpha", "use_rslora", "bias", "fan_in_fan_out")
    written: dict[str, Any] = {name: config[name] for name in kept if name in config}
    written["target_modules"] = sorted(config["target_modules"])
    written["base_model_name_or_path"] = checkpoint.name
    written["base_model_fingerprint"] = checkpoint.fingerprint
    (folder / CONFIG_FILE).write_text(json.dumps(written, indent=2, default=str) + "\n")


def _save_checkpoint(model: Any, checkpoint: Checkpoint, folder: Path) -> None:
    model.to(torch.float16).save_pretrained(folder)
    for path in checkpoint.folder.iterdir():
        if path.suffix in (".json", ".jinja", ".txt") and not (folder / path.name).exists():
            shutil.copy2(path, folder / path.name)
