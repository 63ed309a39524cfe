"""What is done with cached blocks when they become a prompt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from npc_engine.blocks import Block, Layout
from npc_engine.inference.attention import ContextWeighting


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextPolicy:
    """The defaults are what is served; the rest is for models that were not tuned for blocks, and for experiments.

    `arrange` gives blocks their positions. `relink_tokens` tokens of each block are computed again in idle time, once
    its context stands. `weighting` changes how much attention goes to the blocks.
    """

    arrange: Callable[[tuple[Block, ...]], Layout] = Layout.of
    relink_tokens: int = 0
    weighting: ContextWeighting | None = None
