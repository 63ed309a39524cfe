"""Which blocks a prompt consists of, within a token budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from npc_engine.dialogue.render import BlockText
from npc_engine.errors import ContextOverflowError


class FittedLayout(NamedTuple):
    """`blocks` in their order, `num_tokens` together; `left_out` in the order in which they were dropped."""

    blocks: tuple[BlockText, ...]
    num_tokens: int
    left_out: tuple[BlockText, ...]


def fit(blocks: Sequence[BlockText], num_tokens: Sequence[int], budget: int) -> FittedLayout:
    """Drop blocks, the least important first, until the rest has at most `budget` tokens.

    Chosen by meaning, not by age: `importance` decides, and of equals the one that stands first goes first (the
    older memory). A block without importance stays. Nothing smaller is put back into the gap: with a shrinking budget
    the layouts are nested, so that a talk near the limit doesn't swap blocks at every turn. Raises
    ContextOverflowError when even the blocks that stay exceed the budget.
    """
    total = sum(num_tokens)
    droppable = [
        (block.importance, i)
        for i, (block, _) in enumerate(zip(blocks, num_tokens, strict=True))
        if block.importance is not None
    ]
    dropped: list[int] = []
    for _, i in sorted(droppable):
        if total <= budget:
            break
        dropped.append(i)
        total -= num_tokens[i]
    if total > budget:
        raise ContextOverflowError(
            f"max_context_tokens: the blocks that are never left out need {total} tokens, "
            f"and {max(budget, 0)} are free; raise it, or shorten the sheet"
        )
    kept = tuple(block for i, block in enumerate(blocks) if i not in set(dropped))
    return FittedLayout(kept, total, tuple(blocks[i] for i in dropped))


def changed(old: Sequence[BlockText], new: Sequence[BlockText]) -> tuple[BlockText, ...]:
    """The blocks of `new` whose text `old` does not hold: those to encode. Order and origin don't matter."""
    known = {block.text for block in old}
    return tuple(block for block in new if block.text not in known)
