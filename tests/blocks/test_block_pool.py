"""The bookkeeping of one memory tier: who is in, who goes first, who may not go."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from npc_engine.blocks import BlockId, BlockPool
from npc_engine.errors import BlockMemoryError
from tests.blocks.kv_builders import bid


def filled(*sizes: int, max_bytes: int) -> BlockPool:
    """A pool with committed blocks 0, 1, ... of these sizes."""
    pool = BlockPool(max_bytes)
    for number, size in enumerate(sizes):
        assert pool.allocate(bid(number), size) == ()
        pool.commit(bid(number))
    return pool


def test_the_oldest_goes_first_and_no_more_than_needed() -> None:
    """Blocks 0 and 1 make room for 15 bytes; 2 may stay."""
    pool = filled(10, 10, 10, max_bytes=30)
    assert pool.allocate(bid(9), 15) == (bid(0), bid(1))
    assert set(pool) == {bid(2), bid(9)}
    assert pool.num_bytes == 25


def test_giving_back_makes_a_block_the_newest() -> None:
    """The order of eviction is the order in which references were given back."""
    pool = filled(10, 10, 10, max_bytes=30)
    pool.acquire([bid(0), bid(1), bid(2)])
    pool.release([bid(1), bid(2), bid(0)])
    assert pool.allocate(bid(9), 30) == (bid(1), bid(2), bid(0))


def test_a_lookup_is_not_a_use() -> None:
    """`lookup` never changes the order."""
    pool = filled(10, 10, max_bytes=20)
    assert pool.lookup(bid(0))
    assert pool.allocate(bid(9), 10) == (bid(0),)


def test_held_pinned_and_uncommitted_blocks_stay() -> None:
    """Block 3 is the only one that may go."""
    pool = filled(10, 10, max_bytes=40)
    pool.acquire([bid(0)])
    pool.pin(bid(1))
    pool.allocate(bid(2), 10)
    pool.allocate(bid(3), 10)
    pool.commit(bid(3))
    assert pool.allocate(bid(9), 10) == (bid(3),)
    with pytest.raises(BlockMemoryError):
        pool.allocate(bid(8), 10)
    pool.unpin(bid(1))
    assert pool.allocate(bid(8), 10) == (bid(1),)


def test_a_block_held_twice_is_given_back_twice() -> None:
    """References are counted."""
    pool = filled(10, max_bytes=10)
    pool.acquire([bid(0), bid(0)])
    pool.release([bid(0)])
    assert pool.ref_count(bid(0)) == 1
    with pytest.raises(BlockMemoryError):
        pool.allocate(bid(9), 10)
    pool.release([bid(0)])
    assert pool.allocate(bid(9), 10) == (bid(0),)


def test_no_room_evicts_nothing() -> None:
    """All or nothing: what could have gone stays when it would not have been enough."""
    pool = filled(10, 10, 10, max_bytes=30)
    pool.acquire([bid(2)])
    with pytest.raises(BlockMemoryError, match="max_block_memory"):
        pool.allocate(bid(9), 21)
    assert set(pool) == {bid(0), bid(1), bid(2)}
    assert pool.num_bytes == 30
    pool.check_integrity()
    assert pool.allocate(bid(9), 20) == (bid(0), bid(1))


def test_a_block_is_there_once_it_is_committed() -> None:
    """Allocated bytes are taken, but there is nothing to look up yet."""
    pool = BlockPool(10)
    pool.allocate(bid(0), 10)
    assert not pool.lookup(bid(0))
    pool.commit(bid(0))
    assert pool.lookup(bid(0))
    assert not pool.lookup(bid(1))


def test_freeing_forgets_an_allocation() -> None:
    """A block that could not be computed gives its bytes back."""
    pool = BlockPool(10)
    pool.allocate(bid(0), 10)
    pool.free(bid(0))
    assert (len(pool), pool.num_bytes) == (0, 0)
    assert pool.allocate(bid(1), 10) == ()


@pytest.mark.parametrize("mistake", ["allocate", "commit", "release", "free", "acquire"])
def test_our_own_mistakes_are_caught(mistake: str) -> None:
    """Each misuse fails an assertion instead of corrupting the books."""
    pool = filled(1, 1, max_bytes=10)
    pool.acquire([bid(1)])
    pool.allocate(bid(2), 1)
    misuse = {
        "allocate": lambda: pool.allocate(bid(0), 1),
        "commit": lambda: pool.commit(bid(0)),
        "release": lambda: pool.release([bid(0)]),
        "free": lambda: pool.free(bid(1)),
        "acquire": lambda: pool.acquire([bid(2)]),
    }
    with pytest.raises(AssertionError):
        misuse[mistake]()


class PoolMachine(RuleBasedStateMachine):
    """A pool against a list: blocks in order of their last use, with size, references and pin."""

    MAX_BYTES = 100

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(self.MAX_BYTES)
        self.order: list[BlockId] = []  # committed blocks, least recently used first
        self.pending: set[BlockId] = set()
        self.sizes: dict[BlockId, int] = {}
        self.refs: dict[BlockId, int] = {}
        self.pins: set[BlockId] = set()
        self.next_number = 0

    def used(self, block_id: BlockId) -> None:
        self.order.remove(block_id)
        self.order.append(block_id)

    def free_to_go(self) -> list[BlockId]:
        return [each for each in self.order if self.refs[each] == 0 and each not in self.pins]

    @rule(size=st.integers(1, 60))
    def allocate(self, size: int) -> None:
        block_id = bid(self.next_number)
        self.next_number += 1
        needed = sum(self.sizes.values()) + size - self.MAX_BYTES
        victims: list[BlockId] = []
        for each in self.free_to_go():
            if needed <= 0:
                break
            victims.append(each)
            needed -= self.sizes[each]
        if needed > 0:
            with pytest.raises(BlockMemoryError):
                self.pool.allocate(block_id, size)
            return
        assert self.pool.allocate(block_id, size) == tuple(victims)
        for each in victims:
            self.forget(each)
        self.pending.add(block_id)
        self.sizes[block_id] = size
        self.refs[block_id] = 0

    def forget(self, block_id: BlockId) -> None:
        if block_id in self.order:
            self.order.remove(block_id)
        self.pending.discard(block_id)
        self.pins.discard(block_id)
        del self.sizes[block_id], self.refs[block_id]

    @precondition(lambda self: self.pending)
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        block_id = data.draw(st.sampled_from(sorted(self.pending)))
        self.pool.commit(block_id)
        self.pending.remove(block_id)
        self.order.append(block_id)

    @precondition(lambda self: self.order)
    @rule(data=st.data())
    def acquire(self, data: st.DataObject) -> None:
        block_id = data.draw(st.sampled_from(self.order))
        self.pool.acquire([block_id])
        self.refs[block_id] += 1
        self.used(block_id)

    @precondition(lambda self: any(self.refs.values()))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        block_id = data.draw(st.sampled_from([each for each in self.order if self.refs[each]]))
        self.pool.release([block_id])
        self.refs[block_id] -= 1
        self.used(block_id)

    @precondition(lambda self: self.order)
    @rule(data=st.data())
    def pin_or_unpin(self, data: st.DataObject) -> None:
        block_id = data.draw(st.sampled_from(self.order))
        if block_id in self.pins:
            self.pool.unpin(block_id)
            self.pins.remove(block_id)
        else:
            self.pool.pin(block_id)
            self.pins.add(block_id)
        self.used(block_id)

    @precondition(lambda self: any(not refs for refs in self.refs.values()))
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        block_id = data.draw(st.sampled_from(sorted(each for each, refs in self.refs.items() if not refs)))
        self.pool.free(block_id)
        self.forget(block_id)

    @invariant()
    def agrees(self) -> None:
        self.pool.check_integrity()
        assert set(self.pool) == set(self.sizes)
        assert self.pool.num_bytes == sum(self.sizes.values()) <= self.MAX_BYTES
        assert {each for each in self.sizes if self.pool.lookup(each)} == set(self.order)
        assert {each: self.pool.ref_count(each) for each in self.sizes} == self.refs


TestPoolAgainstAList = PoolMachine.TestCase
TestPoolAgainstAList.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
