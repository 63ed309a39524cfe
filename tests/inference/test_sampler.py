"""Choosing tokens: greedy, nucleus, min-p, penalty, seed."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from npc_engine.config import SamplingParams
from npc_engine.inference.sampler import Sampler

LOGITS = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()


def draws(num: int, logits: Tensor = LOGITS, **options: Any) -> Counter[int]:
    """How often each token is the first one of a reply."""
    params = SamplingParams(temperature=1.0, **options)
    return Counter(Sampler(params, seed).sample(logits) for seed in range(num))


def test_temperature_zero_is_the_best_token() -> None:
    """Whatever the other options are."""
    for options in ({}, {"top_p": 0.1}, {"min_p": 0.9}):
        assert Sampler(SamplingParams(temperature=0.0, **options), 1).sample(LOGITS) == 0  # type: ignore[arg-type]


def test_sampling_follows_the_probabilities() -> None:
    """2,000 draws over four tokens, each within five standard deviations."""
    counts = draws(2000)
    for token_id, p in enumerate((0.5, 0.3, 0.15, 0.05)):
        assert abs(counts[token_id] - 2000 * p) < 5 * (2000 * p * (1 - p)) ** 0.5


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"top_p": 0.5}, {0}),
        ({"top_p": 0.51}, {0, 1}),
        ({"top_p": 0.79}, {0, 1}),
        ({"top_p": 0.81}, {0, 1, 2}),
        ({"top_p": 1e-6}, {0}),
        ({"min_p": 0.5}, {0, 1}),
        ({"min_p": 0.25}, {0, 1, 2}),
        ({"min_p": 1.0}, {0}),
        ({"min_p": 0.0, "top_p": 1.0}, {0, 1, 2, 3}),
        ({"min_p": 0.25, "top_p": 0.6}, {0, 1}),
    ],
    ids=str,
)
def test_which_tokens_are_kept(options: dict[str, float], kept: set[int]) -> None:
    """The token that crosses the nucleus stays; min-p is a share of the best one."""
    assert set(draws(400, **options)) == kept


def test_equal_seeds_choose_alike_and_others_do_not() -> None:
    """A reply is reproducible from its seed."""

    def reply(seed: int) -> list[int]:
        sampler = Sampler(SamplingParams(temperature=1.0), seed)
        return [sampler.sample(LOGITS) for _ in range(50)]

    assert reply(5) == reply(5) != reply(6)


def test_the_repetition_penalty_counts_this_reply_alone() -> None:
    """Used tokens: positive logits divided, negative ones multiplied, once however often they were used."""
    sampler = Sampler(SamplingParams(repetition_penalty=2.0), 1)
    logits = torch.tensor([4.0, 3.0, -1.0, -1.5])
    assert [sampler.sample(logits) for _ in range(3)] == [0, 1, 0]
    assert sampler.sample(torch.tensor([-1.0, -1.5, -1.9, -5.0])) == 2  # -2, -3, -1.9
    assert Sampler(SamplingParams(repetition_penalty=2.0), 1).sample(logits) == 0


@settings(deadline=None)
@given(
    logits=st.lists(st.floats(-20, 20, width=32), min_size=2, max_size=12),
    temperature=st.sampled_from([0.0, 0.7]),
    penalty=st.sampled_from([1.0, 1.3]),
)
def test_logits_are_not_modified_and_greedy_has_no_margin(
    logits: list[float], temperature: float, penalty: float
) -> None:
    """What a sampler chooses greedily has margin 0 when it is fed back, penalty included; others have 0 or more."""
    rows = torch.tensor([logits] * 4)
    before = rows.clone()
    params = SamplingParams(temperature=temperature, repetition_penalty=penalty)
    sampler = Sampler(params, 1)
    chosen = [sampler.sample(row) for row in rows]
    margins = Sampler(params, 1).margins(rows, chosen)
    assert torch.equal(rows, before)
    assert min(margins) >= 0
    if temperature == 0:
        assert margins == (0.0,) * 4
