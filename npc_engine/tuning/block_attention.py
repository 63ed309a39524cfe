"""Block attention for transformers' models, differentiable, in one call of the fused kernel.

Registered as an attention implementation of transformers: every model that takes one can be tuned. Queries come rotated
for the positions at which their tokens are computed. A key is needed at all positions from which it is seen: it is
repeated once per slot, moved by the slot's distance, and the mask picks (:class:`~npc_engine.tuning.rows.Batch`).
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import torch.nn.functional as F  # noqa: N812 - the name that every torch user knows
from torch import Tensor, nn
from transformers import AttentionInterface

from npc_engine.blocks.positions import rotate, tables
from npc_engine.tuning.rows import Batch

NAME: Final = "npc_engine_blocks"
"""What ``attn_implementation`` is called."""


class Slots(NamedTuple):
    """What the attention of every layer needs of a batch.

    `tokens`: [rows, slots]; `cos`, `sin`: [rows, 1, slots, head_dim], how far each moves;
    `mask`: [rows, 1, tokens, slots].
    """

    tokens: Tensor
    cos: Tensor
    sin: Tensor
    mask: Tensor

    @classmethod
    def of(cls, batch: Batch, inv_freq: Tensor) -> Slots:
        """inv_freq: [head_dim / 2], without attention scaling: it is in the keys already."""
        distance = batch.slot_positions - batch.positions.gather(1, batch.slot_tokens)
        cos, sin = tables(distance[:, None, :, None].double() * inv_freq.double())
        return cls(batch.slot_tokens, cos, sin, batch.mask()[:, None])


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
    index = slots.tokens[:, None, :, None].expand(-1, key.shape[1], -1, key.shape[3])
    keys = rotate(key.gather(2, index), slots.cos, slots.sin)
    values = value.gather(2, index)
    group = query.shape[1] // key.shape[1]
    out = F.scaled_dot_product_attention(
        query,
        keys.repeat_interleave(group, dim=1),
        values.repeat_interleave(group, dim=1),
        attn_mask=slots.mask,
        dropout_p=dropout if module.training else 0.0,
        scale=scaling,
    )
    return out.transpose(1, 2), None


AttentionInterface.register(NAME, block_attention)
