"""The same layers with less memory traffic, which is what a step of a small model spends its time on.

peft adds an adapter's output to a layer's, and casts every input for it; transformers' RMSNorm is eight operations in
float32. Here the adapter is added to the weight, once per pass and however many tokens there are, and the norm is
torch's. A merged weight is rounded to the dtype of the base as it is when the adapter is served.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every torch user knows
from peft import PeftModel
from peft.tuners.lora import Linear
from torch import Tensor, nn


def use_fast_layers(model: nn.Module) -> None:
    """Replace the forward functions of norms and, unless there is dropout, of adapted layers. Parameters stay."""
    for module in model.modules():
        if isinstance(module, Linear) and isinstance(model, PeftModel):
            if isinstance(module.lora_dropout[model.active_adapter], nn.Identity):
                _replace_forward(module, _MergedLinear(module, model.active_adapter))
        elif type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
            _replace_forward(module, _FusedNorm(module))


class _MergedLinear:
    """``x (W + scale B A)ᵀ + bias``."""

    def __init__(self, module: Linear, name: str) -> None:
        self._base: Any = module.get_base_layer()
        self._a: Any = module.lora_A[name].weight
        self._b: Any = module.lora_B[name].weight
        self._scale: float = module.scaling[name]

    def __call__(self, x: Tensor) -> Tensor:
        weight = self._base.weight
        with torch.autocast(weight.device.type, enabled=False):
            merged = torch.addmm(weight.to(self._a.dtype), self._b, self._a, alpha=self._scale).to(weight.dtype)
        return F.linear(x, merged, self._base.bias)


class _FusedNorm:
    def __init__(self, module: nn.Module) -> None:
        self._module: Any = module

    def __call__(self, x: Tensor) -> Tensor:
        weight = self._module.weight
        return F.rms_norm(x, weight.shape, weight.to(x.dtype), self._module.variance_epsilon)


def _replace_forward(module: Any, forward: Any) -> None:
    module.forward = forward
