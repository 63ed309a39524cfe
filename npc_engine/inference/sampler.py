"""Choosing the next token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from npc_engine.config import SamplingParams


class Sampler:
    """Chooses the tokens of one reply. Two samplers with equal `params` and `seed` choose alike."""

    def __init__(self, params: SamplingParams, seed: int) -> None:
        self._params = params
        self._generator = torch.Generator().manual_seed(seed)
        self._used: list[int] = []  # distinct tokens of this reply

    def sample(self, logits: Tensor) -> int:
        """logits: [vocab], float32, on any device; not modified."""
        params = self._params
        logits = self._penalize(logits)
        if params.temperature == 0:
            token_id = int(logits.argmax())
        else:
            probabilities = (logits / params.temperature).softmax(dim=-1).cpu()
            probabilities = _keep_min_p(probabilities, params.min_p)
            probabilities = _keep_top_p(probabilities, params.top_p)
            token_id = int(torch.multinomial(probabilities, 1, generator=self._generator))
        self._remember(token_id)
        return token_id

    def margins(self, logits: Tensor, token_ids: Sequence[int]) -> tuple[float, ...]:
        """How far each token's logit lies below the best one, as if they were sampled one after the other.

        The repetition penalty is included. At least 0; 0 is what greedy sampling chooses. logits: [tokens, vocab].
        """
        margins = []
        for row, token_id in zip(logits, token_ids, strict=True):
            row = self._penalize(row)
            margins.append(float(row.max() - row[token_id]))
            self._remember(token_id)
        return tuple(margins)

    def _remember(self, token_id: int) -> None:
        if token_id not in self._used:
            self._used.append(token_id)

    def _penalize(self, logits: Tensor) -> Tensor:
        # CTRL (arXiv 1909.05858), over the reply alone: a penalty on the prompt would keep an NPC from quoting its
        # sheet.
        penalty = self._params.repetition_penalty
        if penalty == 1 or not self._used:
            return logits
        used = torch.tensor(self._used, device=logits.device)
        scores = logits[used]
        return logits.index_copy(0, used, torch.where(scores > 0, scores / penalty, scores * penalty))


def _keep_min_p(probabilities: Tensor, min_p: float) -> Tensor:
    if min_p == 0:
        return probabilities
    return probabilities.masked_fill(probabilities < min_p * probabilities.max(), 0)


def _keep_top_p(probabilities: Tensor, top_p: float) -> Tensor:
    if top_p >= 1:
        return probabilities
    ordered, order = probabilities.sort(descending=True)
    before = ordered.cumsum(0) - ordered
    # The token that crosses the threshold stays: the kept ones hold at least top_p.
    return probabilities.index_fill(0, order[before >= top_p * ordered.sum()], 0)
