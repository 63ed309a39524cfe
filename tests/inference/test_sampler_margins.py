"""Margins of forced tokens: how far each lies below what greedy sampling would have chosen."""

from __future__ import annotations

import pytest
import torch

from npc_engine.config import SamplingParams
from npc_engine.inference.sampler import Sampler


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedily_sampled_tokens_have_no_margin(penalty: float) -> None:
    """Fed back, what greedy sampling chose is the likeliest at every step, the penalty of used tokens included."""
    logits = torch.randn(40, 12, generator=torch.Generator().manual_seed(3)) * 4
    params = SamplingParams(repetition_penalty=penalty)
    sampler = Sampler(params, seed=0)
    token_ids = [sampler.sample(row) for row in logits]
    assert Sampler(params, seed=0).margins(logits, token_ids) == (0.0,) * 40


def test_margin_is_the_distance_to_the_best_penalized_logit() -> None:
    """A used token's positive logit is divided, a negative one multiplied, and the distance is taken after that."""
    logits = torch.tensor([[4.0, 1.0, 0.0], [4.0, 1.0, -2.0], [4.0, 1.0, -2.0]])
    margins = Sampler(SamplingParams(repetition_penalty=2.0), seed=0).margins(logits, [2, 0, 2])
    # Third: token 0 was used and counts 2, token 2 was used and counts -4.
    assert margins == (4.0, 0.0, 6.0)
