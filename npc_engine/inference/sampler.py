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
        return sample_all([self], logits[None])[0]

    @property
    def is_greedy(self) -> bool:
        return self._params.temperature == 0

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

    def _draw(self, probabilities: Tensor) -> int:
        """probabilities: [vocab], on the CPU."""
        probabilities = _keep_min_p(probabilities, self._params.min_p)
        probabilities = _keep_top_p(probabilities, self._params.top_p)
        return int(torch.multinomial(probabilities, 1, generator=self._generator))

    def _remember(self, token_id: int) -> None:
        if token_id not in self._used:
            self._used.append(token_id)

    def _penalize(self, logits: Tensor) -> Tensor:
        return _penalize([self], logits[None])[0]


def sample_all(samplers: Sequence[Sampler], logits: Tensor) -> list[int]:
    """The next token of each reply. logits: [replies, vocab], float32; not modified.

    The device is waited for once for all that are greedy, and once for the others.
    """
    logits = _penalize(samplers, logits)
    token_ids = [0] * len(samplers)
    greedy = [i for i, sampler in enumerate(samplers) if sampler.is_greedy]
    others = [i for i, sampler in enumerate(samplers) if not sampler.is_greedy]
    if greedy:
        best = logits.argmax(dim=-1).tolist()
        for i in greedy:
            token_ids[i] = best[i]
    if others:
        temperatures = torch.tensor([samplers[i]._params.temperature for i in others], dtype=logits.dtype)
        scaled = logits[others] / temperatures.to(logits.device)[:, None]
        for i, row in zip(others, scaled.softmax(dim=-1).cpu(), strict=True):
            token_ids[i] = samplers[i]._draw(row)
    for sampler, token_id in zip(samplers, token_ids, strict=True):
        sampler._remember(token_id)
    return token_ids


def _penalize(samplers: Sequence[Sampler], logits: Tensor) -> Tensor:
    # CTRL (arXiv 1909.05858), over the reply alone: a penalty on the prompt would keep an NPC from quoting its sheet.
    used = [
        (row, token_id, sampler._params.repetition_penalty)
        for row, sampler in enumerate(samplers)
        if sampler._params.repetition_penalty != 1
        for token_id in sampler._used
    ]
    if not used:
        return logits
    rows, token_ids, penalties = torch.tensor(used, dtype=torch.float64).to(logits.device).unbind(1)
    index = (rows.long(), token_ids.long())
    scores, penalties = logits[index], penalties.to(logits.dtype)
    return logits.index_put(index, torch.where(scores > 0, scores / penalties, scores * penalties))


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
