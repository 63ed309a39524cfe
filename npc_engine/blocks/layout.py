"""Where blocks lie in a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from npc_engine.blocks.block import Block


class Placement(NamedTuple):
    """A block and the position of its first token in the prompt."""

    block: Block
    position: int

    @property
    def delta(self) -> int:
        """How far the cached keys have to move."""
        return self.position - self.block.start

    @property
    def end(self) -> int:
        return self.position + self.block.num_tokens


@dataclass(frozen=True, slots=True)
class Layout:
    """Blocks one behind the other, without gaps::

    position   0         h            h+a              h+a+b      num_tokens
               | header  | block A    | block B        | turn 1   |  ← the final block starts here
    encoded at   0..h      h..h+a       h..h+b           h+a+b..
    delta        0         0            a                0
    """

    placements: tuple[Placement, ...]

    @classmethod
    def of(cls, blocks: Sequence[Block]) -> Layout:
        position = 0
        placements = []
        for block in blocks:
            placements.append(Placement(block, position))
            position += block.num_tokens
        return cls(tuple(placements))

    @property
    def blocks(self) -> tuple[Block, ...]:
        return tuple(placement.block for placement in self.placements)

    @property
    def num_tokens(self) -> int:
        return self.placements[-1].end if self.placements else 0
