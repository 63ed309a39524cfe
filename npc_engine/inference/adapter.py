"""LoRA adapters (arXiv 2106.09685), merged into the weights while they are read.

The format is PEFT's: ``adapter_config.json`` beside ``adapter_model.safetensors``. A tensor may be stored in int8 with
one scale per row in a second tensor ``NAME.scale``, at a quarter of the size.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from npc_engine.errors import ModelError
from npc_engine.inference.json_file import read_json

CONFIG_FILE: Final = "adapter_config.json"
WEIGHTS_FILE: Final = "adapter_model.safetensors"
SCALE_SUFFIX: Final = ".scale"
_PREFIX: Final = "base_model.model."
_UNSUPPORTED: Final = ("use_dora", "modules_to_save", "alpha_pattern", "rank_pattern", "trainable_token_indices")

SHIPPED: Final = Path(__file__).parents[1] / "adapters"
"""One folder per model that comes with an adapter, named like the model."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """What is added to a checkpoint's weights. `fingerprint` is the digest of both files."""

    name: str
    fingerprint: str
    _scale: float
    _factors: dict[str, Tensor]

    @classmethod
    def open(cls, folder: Path) -> Adapter:
        """Read an adapter folder. Raises :class:`ModelError` naming the file and the remedy."""
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            if not (folder / name).is_file():
                raise ModelError(f"{folder / name}: missing; an adapter folder holds {CONFIG_FILE} and {WEIGHTS_FILE}")
        config = read_json(folder / CONFIG_FILE)
        path = folder / WEIGHTS_FILE
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            digest = hashlib.sha256((folder / CONFIG_FILE).read_bytes() + path.read_bytes())
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{path}: can't be read ({error}); copy the adapter again") from error
        factors = {name: _dequantized(name, tensors) for name in tensors if not name.endswith(SCALE_SUFFIX)}
        return cls(folder.name, digest.hexdigest(), _scale_of(config, folder / CONFIG_FILE), factors)

    @property
    def modules(self) -> tuple[str, ...]:
        """The projections that it changes, as PEFT names them."""
        return tuple(sorted({name.rsplit(".lora_", 1)[0] for name in self._factors}))

    def factors(self, module: str) -> tuple[Tensor, Tensor]:
        """a: [rank, in] and b: [out, rank], float32; what is added is ``b @ a``."""
        a, b = self._factors[f"{module}.lora_A.weight"], self._factors[f"{module}.lora_B.weight"]
        return a.float(), self._scale * b.float()

    def merged(self, name: str, weight: Tensor) -> Tensor:
        """The checkpoint's tensor `name` with this adapter added, in float32; the tensor itself if it has no part.

        weight: [out, in].
        """
        module = _PREFIX + name.removesuffix(".weight")
        a, b = self._factors.get(f"{module}.lora_A.weight"), self._factors.get(f"{module}.lora_B.weight")
        if a is None or b is None:
            return weight
        if (b.shape[0], a.shape[1]) != weight.shape:
            raise ModelError(
                f"adapter {self.name}: {name} is {[b.shape[0], a.shape[1]]}, the model's is {list(weight.shape)}; "
                "use the adapter of this model, or --adapter none"
            )
        return weight.float() + self._scale * (b.float() @ a.float())

    def check_names(self, names: set[str]) -> None:
        """Raise :class:`ModelError` if the adapter changes a tensor that the checkpoint does not have."""
        for name in self._factors:
            base = name.removeprefix(_PREFIX).rsplit(".lora_", 1)[0] + ".weight"
            if base not in names:
                raise ModelError(
                    f"adapter {self.name}: it changes {base}, which the model does not have; use the adapter of this "
                    "model, or --adapter none"
                )


def find_adapter(name: str, model: str) -> Adapter | None:
    """The adapter called `name`: ``none``, a folder, or ``default``: what this product ships for `model`, if anything.

    Raises :class:`ModelError` if there is no such folder.
    """
    if name == "none":
        return None
    if name == "default":
        folder = SHIPPED / model.rpartition("/")[2].lower()  # a hub id's last part
        return Adapter.open(folder) if (folder / CONFIG_FILE).is_file() else None
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise ModelError(f"--adapter {name}: no such folder; give an adapter's folder, default or none")
    return Adapter.open(folder.absolute())


def quantized(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors in int8 with one float32 scale per row."""
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        scale = tensor.float().abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / 127
        stored[name] = (tensor.float() / scale).round().to(torch.int8)
        stored[name + SCALE_SUFFIX] = scale
    return stored


def _dequantized(name: str, tensors: dict[str, Tensor]) -> Tensor:
    tensor = tensors[name]
    scale = tensors.get(name + SCALE_SUFFIX)
    return tensor if scale is None else tensor.float() * scale


def _scale_of(config: dict[str, Any], path: Path) -> float:
    if config.get("peft_type") != "LORA":
        raise ModelError(f"{path}: peft_type is {json.dumps(config.get('peft_type'))}; only LORA is supported")
    for option in _UNSUPPORTED:
        if config.get(option):
            raise ModelError(f"{path}: {option} is not supported; merge the adapter into a checkpoint with peft")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or not isinstance(alpha, int | float) or rank < 1:
        raise ModelError(f"{path}: r and lora_alpha are missing; copy the adapter again")
    return float(alpha) / (rank**0.5 if config.get("use_rslora") else rank)
