"""What is minimized: the loss on replies in both modes, and the distance of blocks from full attention."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every torch user knows
from peft import PeftModel
from torch import Tensor, nn

from npc_engine.tuning.block_attention import Slots, takes_sequences
from npc_engine.tuning.rows import Batch


class Losses(NamedTuple):
    """In nats. Per target token, `kl` is KL(full ‖ blocks), its first argument held fixed: full attention teaches.

    `retrieval`: see :mod:`~npc_engine.tuning.retrieval`.
    """

    full: Tensor
    blocks: Tensor
    kl: Tensor
    retrieval: Tensor

    def total(self, kl_weight: float, retrieval_weight: float) -> Tensor:
        return self.full + self.blocks + kl_weight * self.kl + retrieval_weight * self.retrieval


class Output(NamedTuple):
    """`logits` of targets: [targets, vocab], float32; `retrieval`: a loss."""

    logits: Tensor
    retrieval: Tensor


class TargetLogits(nn.Module):
    """A causal language model of transformers that computes the logits of targets alone."""

    inv_freq: Tensor

    def __init__(self, model: nn.Module, inv_freq: Tensor, *, watches_retrieval: bool = False) -> None:
        super().__init__()
        self.model = model
        self.watches_retrieval = watches_retrieval
        self.register_buffer("inv_freq", inv_freq, persistent=False)

    @staticmethod
    def _takes_sequences(model: Any) -> bool:
        device = model.device
        dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else model.dtype
        return takes_sequences(device, dtype)

    def forward(self, batch: Batch) -> Output:
        model: Any = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        slots = Slots.of(
            batch, self.inv_freq, needs_mask=not self._takes_sequences(model), watches_retrieval=self.watches_retrieval
        )
        hidden = model.model(
            input_ids=batch.token_ids, position_ids=batch.positions, use_cache=False, slots=slots
        ).last_hidden_state
        logits = model.lm_head(hidden[batch.target_rows, batch.target_columns]).float()
        return Output(logits, slots.retrieval.loss() if slots.retrieval is not None else logits.new_zeros(()))


def losses(output: Output, batch: Batch) -> Losses:
    """Of a batch of :func:`~npc_engine.tuning.rows.both_modes`."""
    full, blocks = output.logits.chunk(2)
    ids, _ = batch.target_ids.chunk(2)
    log_full, log_blocks = full.log_softmax(-1), blocks.log_softmax(-1)
    return Losses(
        full=F.nll_loss(log_full, ids),
        blocks=F.nll_loss(log_blocks, ids),
        kl=F.kl_div(log_blocks, log_full.detach(), log_target=True, reduction="batchmean"),
        retrieval=output.retrieval,
    )
