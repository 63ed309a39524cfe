"""Projections, with the arithmetic that follows them."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every torch user knows
from torch import Tensor

# oneDNN lays the weights out for products with about this many rows; measured on two AMX cores, 16 to 512 do equally
# well from 1 to 256 rows, and 1 costs a quarter from 50 rows on (docs/log.md).
_PACKED_FOR_ROWS = 512


class Linear(Protocol):
    """``x @ weight.T + bias``. x: [tokens, in] → [tokens, out]."""

    num_parameters: int

    def __call__(self, x: Tensor) -> Tensor: ...

    def silu(self, x: Tensor) -> Tensor:
        """``silu(linear(x))``."""
        ...

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        """``linear(x) * other``. other: [tokens, out]."""
        ...

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """``linear(x) + other``. other: [tokens, out]."""
        ...


def linear(weight: Tensor, bias: Tensor | None = None) -> Linear:
    """The fastest projection for this weight: [out, in]; bias: [out]. It may keep a copy in another layout."""
    if weight.device.type == "cpu" and weight.dtype is torch.bfloat16 and torch.backends.mkldnn.is_available():
        return PackedLinear(weight, bias)
    return PlainLinear(weight, bias)


class PlainLinear:
    """Any device, any dtype."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.num_parameters = weight.numel() + (bias.numel() if bias is not None else 0)
        self._weight = weight
        self._bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self._weight, self._bias)

    def silu(self, x: Tensor) -> Tensor:
        return F.silu(self(x))

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        return self(x) * other

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        return self(x) + other


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
        return self._pointwise(x, "swish")

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        return self._binary(x, other, "mul")

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        return self._binary(x, other, "add")

    def _pointwise(self, x: Tensor, operation: str) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, operation, [], "")
        return out

    def _binary(self, x: Tensor, other: Tensor, operation: str) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, self._weight, self._bias, operation)
        return out
