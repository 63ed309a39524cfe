"""Rotary position embedding: frequencies and tables (arXiv 2104.09864)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from npc_engine.blocks.positions import tables
from npc_engine.inference.rope_config import RopeConfig

_TABLE_STEP = 1024  # positions by which the table grows


class RotaryTable:
    """Cosines and sines by position, grown on demand.

    `inv_freq`: [head_dim / 2], float32, on `device`. The tables carry YaRN's attention scaling, `scale`; `inv_freq`
    does not, so moving a key by a difference of positions never scales it again.
    """

    def __init__(self, config: RopeConfig, head_dim: int, device: torch.device) -> None:
        self.inv_freq = inverse_frequencies(config, head_dim).to(device)
        self.scale = config.attention_factor
        self._cos = self._sin = torch.empty(0, head_dim, device=device)

    def at(self, spans: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """Tables of the positions from `start` up to `end` of each span, one span after the other.

        Each is [tokens, 1, head_dim], in the form that :func:`~npc_engine.blocks.positions.rotate` takes.
        """
        self._reserve(max(end for _, end in spans))
        cos = torch.cat([self._cos[start:end] for start, end in spans])
        sin = torch.cat([self._sin[start:end] for start, end in spans])
        return cos[:, None], sin[:, None]

    def of(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Tables of these positions, in the form of :meth:`at`. positions: [tokens], any integers."""
        self._reserve(int(positions.max()) + 1)
        return self._cos[positions.long()][:, None], self._sin[positions.long()][:, None]

    def _reserve(self, num_positions: int) -> None:
        if num_positions <= len(self._cos):
            return
        num_positions = -(-num_positions // _TABLE_STEP) * _TABLE_STEP
        positions = torch.arange(num_positions, dtype=torch.float32, device=self.inv_freq.device)
        cos, sin = tables(positions[:, None] * self.inv_freq)
        self._cos, self._sin = cos * self.scale, sin * self.scale


def inverse_frequencies(config: RopeConfig, head_dim: int) -> Tensor:
    """The frequency of each pair of dimensions, in radians per position: [head_dim / 2], float32."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    inv_freq = 1.0 / config.theta**exponents
    if config.type == "linear":
        return inv_freq / config.factor
    if config.type == "llama3":
        return _llama3(config, inv_freq)
    if config.type == "yarn":
        return _yarn(config, inv_freq, head_dim)
    return inv_freq


def _llama3(config: RopeConfig, inv_freq: Tensor) -> Tensor:
    # How often a pair turns within the original context decides: rarely → slowed down, often → kept, between → blended.
    num_turns = config.original_max_position_embeddings * inv_freq / (2 * math.pi)
    kept = ((num_turns - config.low_freq_factor) / (config.high_freq_factor - config.low_freq_factor)).clamp(0, 1)
    return inv_freq * kept + inv_freq / config.factor * (1 - kept)


def _yarn(config: RopeConfig, inv_freq: Tensor, head_dim: int) -> Tensor:
    # arXiv 2309.00071, section 3.2: a linear ramp over the index of the pair.
    def pair_that_turns(num_turns: float) -> float:
        length = config.original_max_position_embeddings / (2 * math.pi * num_turns)
        return head_dim * math.log(length) / (2 * math.log(config.theta))

    first, last = pair_that_turns(config.beta_fast), pair_that_turns(config.beta_slow)
    if config.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    width = max(last - first, 1e-3)
    slowed = ((torch.arange(head_dim // 2, dtype=torch.float32) - first) / width).clamp(0, 1)
    return inv_freq / config.factor * slowed + inv_freq * (1 - slowed)
