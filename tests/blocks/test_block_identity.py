"""The identity of a block: everything that its keys and values depend on, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from npc_engine.blocks import Block, Layout, ModelIdentity
from tests.blocks.kv_builders import IDENTITY

GOLDEN_ID = "0eb8657cc1519dc6ea09915ff21054abad76b013871c0b9073b7b70473c1c36e"


def sample(identity: ModelIdentity = IDENTITY) -> Block:
    header = Block.behind(identity, (), [1, 2, 3])
    return Block.behind(identity, (header,), [4, 5, 6])


def test_golden_id() -> None:
    """Ids are what stores and saves are keyed by: a change of the hash would lose every cached block."""
    assert sample().id.hex() == GOLDEN_ID


def test_the_same_arguments_give_the_same_block() -> None:
    """Two NPCs that hold the same text hold one block."""
    assert sample() == sample()


@pytest.mark.parametrize(
    "other",
    [
        replace(IDENTITY, fingerprint="0" * 64),
        replace(IDENTITY, adapter="lora"),
        replace(IDENTITY, dtype="bfloat16"),
        replace(IDENTITY, rope="theta=500000"),
    ],
    ids=["fingerprint", "adapter", "dtype", "rope"],
)
def test_each_part_of_the_model_identity_changes_the_id(other: ModelIdentity) -> None:
    """Keys of another checkpoint, adapter, precision or rotary embedding are other keys."""
    header = Block.behind(IDENTITY, (), [1, 2, 3])
    assert Block.behind(other, (header,), [4, 5, 6]).id != sample().id


def test_tokens_and_parents_and_their_order_change_the_id() -> None:
    """The id stands for the tokens, what they were encoded behind, and in which order that lay."""
    a, b = (Block.behind(IDENTITY, (), [token_id]) for token_id in (1, 2))
    blocks = [
        Block.behind(IDENTITY, parents, tokens)
        for parents in ((), (a,), (b,), (a, b), (b, a), (a, a))
        for tokens in ([7, 8], [8, 7], [7], [7, 8, 9])
    ]
    assert len({block.id for block in blocks}) == len(blocks)


def test_the_position_does_not_change_the_id() -> None:
    """A block keeps its id wherever a layout puts it."""
    a, b = (Block.behind(IDENTITY, (), [token_id] * 3) for token_id in (1, 2))
    first, second = Layout.of([a, b]), Layout.of([b, a])
    assert [p.position for p in first.placements if p.block is b] == [3]
    assert [p.position for p in second.placements if p.block is b] == [0]
    assert {p.block.id for p in first.placements} == {p.block.id for p in second.placements}


def test_local_positions_start_behind_the_parents() -> None:
    """`start` counts the tokens of all parents."""
    a, b = (Block.behind(IDENTITY, (), [1] * n) for n in (3, 5))
    child = Block.behind(IDENTITY, (a, b), [1])
    assert (child.start, child.parents) == (8, (a.id, b.id))


def test_a_block_without_tokens_is_refused() -> None:
    """An empty text is no block."""
    with pytest.raises(ValueError, match="at least one token"):
        Block.behind(IDENTITY, (), [])


names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=4)


@given(one=st.tuples(names, names.filter(bool), names, names), other=st.tuples(names, names.filter(bool), names, names))
def test_different_identities_have_different_digests(
    one: tuple[str, str, str, str], other: tuple[str, str, str, str]
) -> None:
    """No field runs into the next: the digest is injective."""
    assert (ModelIdentity(*one).digest() == ModelIdentity(*other).digest()) == (one == other)


@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 3), max_size=3), st.lists(st.integers(0, 2**31), min_size=1, max_size=6)),
        min_size=2,
        max_size=6,
    )
)
def test_ids_are_equal_exactly_when_parents_and_tokens_are(cases: list[tuple[list[int], list[int]]]) -> None:
    """Against the obvious model: the pair of parent ids and tokens."""
    parents = [Block.behind(IDENTITY, (), [i]) for i in range(4)]
    ids = [Block.behind(IDENTITY, [parents[i] for i in numbers], tokens).id for numbers, tokens in cases]
    keys = [(tuple(numbers), tuple(tokens)) for numbers, tokens in cases]
    assert len(set(ids)) == len(set(keys))


def test_a_layout_has_no_gaps() -> None:
    """Placements lie one behind the other, and delta is how far a block's keys move."""
    header = Block.behind(IDENTITY, (), [1] * 4)
    a, b = (Block.behind(IDENTITY, (header,), [2] * n) for n in (3, 5))
    layout = Layout.of([header, a, b])
    assert [(p.position, p.end, p.delta) for p in layout.placements] == [(0, 4, 0), (4, 7, 0), (7, 12, 3)]
    assert layout.num_tokens == 12
    assert layout.blocks == (header, a, b)
    assert Layout.of([]).num_tokens == 0
