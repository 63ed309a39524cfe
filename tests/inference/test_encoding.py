"""Which blocks are encoded together."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from npc_engine.blocks import Block, ModelIdentity
from npc_engine.inference.encoding import ready_to_encode

IDENTITY = ModelIdentity("f", None, "float32", "r")


def block(seed: int, num_tokens: int, *parents: Block) -> Block:
    return Block.behind(IDENTITY, parents, [seed] * num_tokens)


def test_children_wait_for_their_parents() -> None:
    """First the header, then everything behind it."""
    header = block(1, 5)
    a, b = block(2, 5, header), block(3, 5, header)
    assert ready_to_encode([header, a, b], 100) == [header]
    assert ready_to_encode([a, b], 100) == [a, b]


def test_a_wave_is_bounded_but_never_empty() -> None:
    """Up to the limit in order; a block that is longer goes alone."""
    blocks = [block(i, 40) for i in range(4)]
    assert ready_to_encode(blocks, 100) == blocks[:2]
    assert ready_to_encode(blocks, 10) == blocks[:1]
    assert ready_to_encode([], 10) == []


@given(st.lists(st.tuples(st.integers(1, 30), st.sets(st.integers(0, 9))), min_size=1, max_size=10))
def test_waves_encode_everything_once_parents_first(shape: list[tuple[int, set[int]]]) -> None:
    """Any family of blocks, in as many waves as it takes."""
    blocks: list[Block] = []
    for i, (num_tokens, parents) in enumerate(shape):
        blocks.append(block(i, num_tokens, *(blocks[p] for p in sorted(parents) if p < i)))
    done: set[bytes] = set()
    while missing := [each for each in blocks if each.id not in done]:
        wave = ready_to_encode(missing, 50)
        assert wave
        assert len(wave) == 1 or sum(each.num_tokens for each in wave) <= 50
        assert all(set(each.parents) <= done for each in wave)
        assert not done & {each.id for each in wave}
        done |= {each.id for each in wave}
