"""Budgets by meaning: what is left out, and in which order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from npc_engine.dialogue import BlockText, changed, fit
from npc_engine.errors import ContextOverflowError
from npc_engine.world import EntityId


def block(name: str, importance: int | None = None) -> BlockText:
    return BlockText(EntityId("character/ben"), name, f"{name}\n", importance)


IDENTITY, OLD, DULL, NEW, GOALS = (
    block("identity"),
    block("old", 5),
    block("dull", 2),
    block("new", 5),
    block("goals", 16),
)
BLOCKS = (IDENTITY, OLD, DULL, NEW, GOALS)
SIZES = (10, 20, 30, 40, 50)


@pytest.mark.parametrize(
    ("budget", "kept", "num_tokens", "left_out"),
    [
        (150, BLOCKS, 150, ()),
        (149, (IDENTITY, OLD, NEW, GOALS), 120, (DULL,)),
        (119, (IDENTITY, NEW, GOALS), 100, (DULL, OLD)),
        (99, (IDENTITY, GOALS), 60, (DULL, OLD, NEW)),
        (10, (IDENTITY,), 10, (DULL, OLD, NEW, GOALS)),
    ],
)
def test_least_important_goes_first(
    budget: int, kept: tuple[BlockText, ...], num_tokens: int, left_out: tuple[BlockText, ...]
) -> None:
    """Importance decides, of equals the older goes, and what has none stays."""
    assert fit(BLOCKS, SIZES, budget) == (kept, num_tokens, left_out)


def test_what_must_stay_does_not_fit() -> None:
    """A prompt without its identity would be worse than none."""
    with pytest.raises(ContextOverflowError, match="never left out need 10 tokens, and 9 are free"):
        fit(BLOCKS, SIZES, 9)


@given(
    importances=st.lists(st.one_of(st.none(), st.integers(1, 17)), max_size=12),
    sizes=st.lists(st.integers(1, 90), min_size=12, max_size=12),
    budgets=st.tuples(st.integers(0, 1200), st.integers(0, 1200)),
)
def test_smaller_budgets_give_nested_layouts(
    importances: list[int | None], sizes: list[int], budgets: tuple[int, int]
) -> None:
    """Order is kept, the budget holds, and a smaller budget never brings a block back."""
    blocks = [block(str(i), importance) for i, importance in enumerate(importances)]
    sizes = sizes[: len(blocks)]
    must = sum(size for each, size in zip(blocks, sizes, strict=True) if each.importance is None)
    small, large = (fit(blocks, sizes, max(budget, must)) for budget in sorted(budgets))
    for layout, budget in ((small, min(budgets)), (large, max(budgets))):
        assert layout.num_tokens <= max(budget, must)
        assert list(layout.blocks) == [each for each in blocks if each in layout.blocks]
        assert {*layout.blocks, *layout.left_out} == set(blocks)
    assert set(small.blocks) <= set(large.blocks)


def test_changed_ignores_order_and_origin() -> None:
    """A block whose text is known needs no encoding, wherever it stands."""
    moved = BlockText(EntityId("character/ann"), "other", "old\n")
    assert changed((IDENTITY, OLD), (moved, NEW, IDENTITY)) == (NEW,)
