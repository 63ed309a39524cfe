"""Where blocks lie in a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from npc_engine.blocks.block import Block


class Placement(NamedTuple):
    """A block, the position of its first token in the prompt, and the row of a buffer that it lies in.

    Rows follow each other without gaps; positions do so, too, unless an experiment wants them elsewhere.
    """

    block: Block
    position: int
    row: int

    @property
    def delta(self) -> int:
        """How far the cached keys have to move."""
        return self.position - self.block.start

    @property
    def end(self) -> int:
        """The position behind the block."""
        return self.position + self.block.num_tokens

    @property
    def rows(self) -> slice:
        return slice(self.row, self.row + self.block.num_tokens)


@dataclass(frozen=True, slots=True)
class Layout:
    """Blocks one behind the other, without gaps::

    position   0         h            h+a              h+a+b      end
               | header  | block A    | block B        | turn 1   |  ← the final block starts here
    encoded at   0..h      h..h+a       h..h+b           h+a+b..
    delta        0         0            a                0
    """

    placements: tuple[Placement, ...]
    end: int
    """The position of the token that follows."""

    @classmethod
    def of(cls, blocks: Sequence[Block]) -> Layout:
        position = 0
        placements = []
        for block in blocks:
            placements.append(Placement(block, position, position))
            position += block.num_tokens
        return cls(tuple(placements), position)

    @classmethod
    def at(cls, blocks: Sequence[Block], positions: Sequence[int], end: int) -> Layout:
        """Blocks at positions of the caller's choice, which may leave gaps and may overlap. For experiments."""
        placements = []
        row = 0
        for block, position in zip(blocks, positions, strict=True):
            placements.append(Placement(block, position, row))
            row += block.num_tokens
        return cls(tuple(placements), end)

    @property
    def blocks(self) -> tuple[Block, ...]:
        return tuple(placement.block for placement in self.placements)

    @property
    def num_tokens(self) -> int:
        return sum(placement.block.num_tokens for placement in self.placements)
