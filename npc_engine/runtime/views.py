"""What the engine shows of itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from npc_engine.blocks import Tier


@dataclass(frozen=True, slots=True)
class NpcInfo:
    """An NPC as a game lists it. `place` is the key of where it is."""

    id: str
    name: str
    role: str
    place: str


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The model that speaks."""

    name: str
    architecture: str
    fingerprint: str
    adapter: str | None
    device: str
    dtype: str
    num_parameters: int


@dataclass(frozen=True, slots=True)
class BlockView:
    """One block of a prompt, for people: who owns it, how long it is, where its keys and values are."""

    entity: str
    section: str
    text: str
    block_id: str
    position: int
    num_tokens: int
    tier: Tier


class Preparation(NamedTuple):
    """What it took to have an NPC's blocks in memory; `num_left_out` had no room within ``max_context_tokens``."""

    num_blocks: int
    num_tokens: int
    num_encoded_tokens: int
    elapsed_ms: float
    num_left_out: int
