"""Projections, with the arithmetic that follows them."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every torch user knows
from torch import Tensor

from npc_engine.inference.fused import silu_mul

# oneDNN lays the weights out for products with about this many rows; measured on two AMX cores, 16 to 512 do equally
# well from 1 to 256 rows, and 1 costs a quarter from 50 rows on (docs/log.md).
_PACKED_FOR_ROWS = 512


class Linear(Protocol):
    """``x @ weight.T + bias``. x: [tokens, in] → [tokens, out]."""

    num_parameters: int

    def __call__(self, x: Tensor) -> Tensor: ...

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """``linear(x) + other``. other: [tokens, out]; it may be overwritten."""
        ...


class GatedLinear(Protocol):
    """``silu(x @ gate.T) * (x @ up.T)``, with biases. x: [tokens, in] → [tokens, out]."""

    num_parameters: int

    def __call__(self, x: Tensor) -> Tensor: ...


def linear(weight: Tensor, bias: Tensor | None = None) -> Linear:
    """The fastest projection for this weight: [out, in]; bias: [out]. It may keep a copy in another layout."""
    if _is_packed(weight):
        return PackedLinear(weight, bias)
    return PlainLinear(weight, bias)


def gated_linear(
    gate: Tensor, up: Tensor, gate_bias: Tensor | None = None, up_bias: Tensor | None = None
) -> GatedLinear:
    """The fastest one for these weights: each [out, in]; biases: [out]."""
    if _is_packed(gate):
        return PackedGatedLinear(PackedLinear(gate, gate_bias), PackedLinear(up, up_bias))
    bias = torch.cat((gate_bias, up_bias)) if gate_bias is not None and up_bias is not None else None
    return PlainGatedLinear(PlainLinear(torch.cat((gate, up)), bias))


def _is_packed(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype is torch.bfloat16 and torch.backends.mkldnn.is_available()


class PlainLinear:
    """Any device, any dtype."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.num_parameters = weight.numel() + (bias.numel() if bias is not None else 0)
        self._weight = weight
        self._bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self._weight, self._bias)

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        if self._bias is not None:
            return self(x) + other
        return other.addmm_(x, self._weight.t())  # one pass: the product adds to what is there


class PlainGatedLinear:
    """One product for both halves."""

    def __init__(self, gate_up: PlainLinear) -> None:
        self.num_parameters = gate_up.num_parameters
        self._gate_up = gate_up

    def __call__(self, x: Tensor) -> Tensor:
        return silu_mul(self._gate_up(x))


class PackedLinear:
    """oneDNN's own layout, packed once instead of at every call, with the next operation fused in.

    For bfloat16 on a CPU: 1.6 times as fast as the plain product for 1 and for 50 rows (docs/log.md).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.num_parameters = weight.numel() + (bias.numel() if bias is not None else 0)
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _PACKED_FOR_ROWS)
        self._bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        return self._pointwise(x, "none")

    def silu(self, x: Tensor) -> Tensor:
        """``silu(linear(x))``."""
        return self._pointwise(x, "swish")

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        """``linear(x) * other``. other: [tokens, out]."""
        return self._binary(x, other, "mul")

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        return self._binary(x, other, "add")

    def _pointwise(self, x: Tensor, operation: str) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, operation, [], "")
        return out

    def _binary(self, x: Tensor, other: Tensor, operation: str) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, self._weight, self._bias, operation)
        return out


class PackedGatedLinear:
    """Two products, the arithmetic between them fused in."""

    def __init__(self, gate: PackedLinear, up: PackedLinear) -> None:
        self.num_parameters = gate.num_parameters + up.num_parameters
        self._gate, self._up = gate, up

    def __call__(self, x: Tensor) -> Tensor:
        return self._up.times(x, self._gate.silu(x))
