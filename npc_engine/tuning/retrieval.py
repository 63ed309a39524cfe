"""Where a model looks for an answer, and a loss that teaches it.

The loss on a reply says what to answer, and nothing of where the answer stands. Scenes know the blocks that each answer
needs: where a reply begins, some heads of the middle layers are to look there and not at the other blocks.
"""

from __future__ import annotations

import math
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from npc_engine.tuning.rows import Batch

_FIRST_LAYER, _LAST_LAYER = 1 / 3, 5 / 6  # of all: below words are read, above the reply is written
_EVERY: Final = 2  # of these layers; they pass on what they found
_SHARE_OF_HEADS: Final = 1 / 3  # these suffice; the others have other work


class Retrieval:
    """Watches a batch's lookups in one forward pass; then :meth:`loss`."""

    def __init__(self, columns: Tensor, among: Tensor, sought: Tensor) -> None:
        """columns: [rows, lookups]; among, sought: [rows, lookups, slots], the slots of all blocks that a lookup sees,
        and of those in which its answer stands."""
        self._columns, self._among, self._sought = columns, among, sought
        self._layers: list[Tensor] = []

    @classmethod
    def of(cls, batch: Batch) -> Retrieval | None:
        """None if the batch has no lookups."""
        if batch.lookup_columns.numel() == 0:
            return None
        columns, rows = batch.lookup_columns, torch.arange(len(batch.token_ids), device=batch.token_ids.device)[:, None]
        slot_blocks = batch.token_blocks.gather(1, batch.slot_tokens)
        sees = batch.sees[rows, batch.segments.gather(1, columns)]  # [rows, lookups, groups]
        groups, blocks = (each[:, None].expand(-1, columns.shape[1], -1) for each in (batch.slot_groups, slot_blocks))
        among = sees.gather(2, groups) & (batch.slot_tokens[:, None] <= columns[..., None]) & (blocks > 0)
        sought = among & batch.lookup_sources.gather(2, blocks)
        return cls(columns, among, sought)

    def watch(self, module: nn.Module, query: Tensor, keys: Tensor, scaling: float) -> None:
        """query: [rows, heads, tokens, head_dim]; keys: [rows, slots, kv_heads, head_dim], moved."""
        layer: Any = module
        first, last = (math.ceil(share * layer.config.num_hidden_layers) for share in (_FIRST_LAYER, _LAST_LAYER))
        if layer.layer_idx not in range(first, last, _EVERY):
            return
        # Scores of all lookups against all slots are large, and quickly computed again.
        self._layers.append(checkpoint(self._missed, query, keys, scaling, use_reentrant=False))

    def _missed(self, query: Tensor, keys: Tensor, scaling: float) -> Tensor:
        index = self._columns[:, None, :, None].expand(-1, query.shape[1], -1, query.shape[3])
        queries = query.gather(2, index).unflatten(1, (keys.shape[2], -1))
        scores = torch.einsum("rkgld,rskd->rkgls", queries, keys).flatten(1, 2).float() * scaling
        # A lookup that only fills up its row has no sources: it is given one score and left out below.
        is_real = self._sought.any(-1)
        among = torch.where(is_real[..., None], self._among, True)[:, None]
        sought = torch.where(is_real[..., None], self._sought, True)[:, None]
        lowest = torch.finfo(scores.dtype).min
        found = scores.masked_fill(~sought, lowest).logsumexp(-1) - scores.masked_fill(~among, lowest).logsumexp(-1)
        num_heads = max(1, round(found.shape[1] * _SHARE_OF_HEADS))
        best = found.topk(num_heads, dim=1).values.logsumexp(1) - torch.tensor(float(num_heads)).log()
        return -(best * is_real).sum() / is_real.sum().clamp(min=1)

    def loss(self) -> Tensor:
        """-log of the attention to blocks that falls on the right ones, in nats: mean over lookups and layers."""
        return torch.stack(self._layers).mean()
