"""What is done with cached blocks when they become a prompt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from npc_engine.blocks import Block, Layout
from npc_engine.inference.attention import ContextWeighting
from npc_engine.inference.relinking import RelinkExtent


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextPolicy:
    """The defaults are what is served; the rest is for models that were not tuned for blocks, and for experiments.

    `arrange` gives blocks their positions. `relink` says which tokens are computed again in idle time, once a
    context stands. `weighting` changes how much attention goes to the blocks.
    """

    arrange: Callable[[tuple[Block, ...]], Layout] = Layout.of
    relink: RelinkExtent | None = None
    weighting: ContextWeighting | None = None
