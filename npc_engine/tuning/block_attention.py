"""Block attention for transformers' models, differentiable, in one call of the fused kernel.

Registered as an attention implementation of transformers: every model that takes one can be tuned. Queries come rotated
for the positions at which their tokens are computed. A key is needed at all positions from which it is seen: it is
repeated once per slot, moved by the slot's distance, and the mask picks (:class:`~npc_engine.tuning.rows.Batch`).
"""

from __future__ import annotations

import inspect
from typing import Any, Final, NamedTuple, cast

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every torch user knows
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface

from npc_engine.blocks.positions import rotate, tables
from npc_engine.tuning.retrieval import Retrieval
from npc_engine.tuning.rows import Batch

_VARLEN_PARAMETERS: Final = inspect.signature(varlen_attn).parameters
NAME: Final = "npc_engine_blocks"
"""What ``attn_implementation`` is called."""


class Slots(NamedTuple):
    """What the attention of every layer needs of a batch.

    `tokens`: [rows * slots], which token of all rows each slot is of; `cos`, `sin`: [rows, slots, 1, head_dim], how far
    each moves; `mask`: [rows, 1, tokens, slots], or None where the kernel takes sequences. `retrieval` gathers what the
    layers say of it, or is None where nobody asks.
    """

    batch: Batch
    tokens: Tensor
    cos: Tensor
    sin: Tensor
    mask: Tensor | None
    retrieval: Retrieval | None

    @classmethod
    def of(cls, batch: Batch, inv_freq: Tensor, *, needs_mask: bool, watches_retrieval: bool) -> Slots:
        """inv_freq: [head_dim / 2], without attention scaling: it is in the keys already."""
        num_rows, num_tokens = batch.token_ids.shape
        rows = torch.arange(num_rows, device=batch.token_ids.device)[:, None]
        tokens = (batch.slot_tokens + num_tokens * rows).flatten()
        distance = batch.slot_positions - batch.positions.gather(1, batch.slot_tokens)
        cos, sin = tables(distance[:, :, None, None].double() * inv_freq.double())
        mask = batch.mask()[:, None] if needs_mask else None
        return cls(batch, tokens, cos, sin, mask, Retrieval.of(batch) if watches_retrieval else None)


def block_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    *,
    slots: Slots,
    **_: Any,
) -> tuple[Tensor, None]:
    """query: [rows, heads, tokens, head_dim]; key, value: [rows, kv_heads, tokens, head_dim], rotated.

    Returns [rows, tokens, heads, head_dim], as transformers expects.
    """
    shape = slots.batch.slot_tokens.shape
    keys = take(key.transpose(1, 2).flatten(0, 1), slots.tokens).unflatten(0, shape)
    keys = rotate(keys, slots.cos, slots.sin)
    values = take(value.transpose(1, 2).flatten(0, 1), slots.tokens).unflatten(0, shape)
    if slots.retrieval is not None:
        slots.retrieval.watch(module, query, keys, scaling)
    if slots.mask is None:
        return _over_sequences(query.transpose(1, 2), keys, values, slots.batch, scaling), None
    group = query.shape[1] // key.shape[1]
    out = F.scaled_dot_product_attention(
        query,
        keys.transpose(1, 2).repeat_interleave(group, dim=1),
        values.transpose(1, 2).repeat_interleave(group, dim=1),
        attn_mask=slots.mask,
        dropout_p=dropout if module.training else 0.0,
        scale=scaling,
    )
    return out.transpose(1, 2), None


def _over_sequences(query: Tensor, keys: Tensor, values: Tensor, batch: Batch, scaling: float) -> Tensor:
    """Each segment a sequence of its own: no mask, and no work on what is not seen.

    query: [rows, tokens, heads, head_dim]; keys, values: [rows, slots, kv_heads, head_dim].
    """
    options: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in _VARLEN_PARAMETERS else {}
    out = varlen_attn(
        query.flatten(0, 1),
        take(keys.flatten(0, 1), batch.key_slots),
        take(values.flatten(0, 1), batch.key_slots),
        batch.query_ends,
        batch.key_ends,
        batch.max_queries,
        batch.max_keys,
        scale=scaling,
        window_size=(-1, 0),
        **options,
    )
    attended: Tensor = cast(Tensor, out).unflatten(0, query.shape[:2])
    return attended


def take(x: Tensor, index: Tensor) -> Tensor:
    """``x[index]``, whose backward pass adds in float32 and in any order. x: [n, ...]; index: [m].

    Autograd's own sorts the index first, in every layer.
    """
    return cast(Tensor, _Take.apply(x, index))  # type: ignore[no-untyped-call]


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.num_rows = len(x)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        (index,) = ctx.saved_tensors
        total = torch.zeros(ctx.num_rows, *gradient.shape[1:], dtype=torch.float32, device=gradient.device)
        return total.index_add_(0, index, gradient.float()).to(gradient.dtype), None


def takes_sequences(device: torch.device, dtype: torch.dtype) -> bool:
    """True where the kernel for sequences of different lengths runs: half precision on a GPU."""
    return device.type == "cuda" and dtype in (torch.bfloat16, torch.float16)


AttentionInterface.register(NAME, block_attention)
