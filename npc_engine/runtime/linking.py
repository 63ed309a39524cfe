"""Which blocks a block is encoded behind: the one choice between Block-Attention and full attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from npc_engine.blocks import Block
from npc_engine.dialogue.render import BlockText
from npc_engine.world import Kind
from npc_engine.world.entities import split


@dataclass(frozen=True, slots=True)
class OwnedBlock:
    """A block and the text it was made of; `text` names the entity that owns it."""

    text: BlockText
    block: Block


Linking = Callable[[Block, Sequence[OwnedBlock], BlockText], tuple[Block, ...]]
"""Header, the blocks in front, and a text → the parents of that text's block."""


def header_only(header: Block, before: Sequence[OwnedBlock], text: BlockText) -> tuple[Block, ...]:
    """The paper's blocks, behind the engine's header: shared by everybody who knows the text."""
    return (header,)


def own_sheet(header: Block, before: Sequence[OwnedBlock], text: BlockText) -> tuple[Block, ...]:
    """Memories behind the sheet of their owner, everything else behind the header.

    An edited sheet costs encoding its owner's memories again.
    """
    if not text.section.startswith("memories/"):
        return (header,)
    own = (each.block for each in before if each.text.entity == text.entity and each.text.section.startswith("sheet/"))
    return (header, *own)


def in_groups(num_tokens: int) -> Linking:
    """Fewer and larger blocks: neighbours of one part of the prompt see each other, until they have `num_tokens`.

    An edited block costs encoding the rest of its group again; what comes in or goes out, the rest of its part.
    """

    def linking(header: Block, before: Sequence[OwnedBlock], text: BlockText) -> tuple[Block, ...]:
        if not before or _part(before[-1].text) != _part(text):
            return (header,)
        # The block in front stands behind the header and those that came before it in its group.
        size = len(before[-1].block.parents)
        group = [each.block for each in before[len(before) - size :]]
        return (header,) if sum(block.num_tokens for block in group) >= num_tokens else (header, *group)

    return linking


def _part(text: BlockText) -> tuple[Kind, str]:
    """The lore, a character's sheet, its memories, the place: what a game changes one of without the others."""
    return split(text.entity)[0], text.section.partition("/")[0]


def everything_before(header: Block, before: Sequence[OwnedBlock], text: BlockText) -> tuple[Block, ...]:
    """Full attention with a prefix cache: a change costs encoding everything behind it again."""
    return (header, *(each.block for each in before))
