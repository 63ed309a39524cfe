"""Which blocks a block is encoded behind: the one choice between Block-Attention and full attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from npc_engine.blocks import Block
from npc_engine.dialogue.render import BlockText


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


def everything_before(header: Block, before: Sequence[OwnedBlock], text: BlockText) -> tuple[Block, ...]:
    """Full attention with a prefix cache: a change costs encoding everything behind it again."""
    return (header, *(each.block for each in before))
