"""The KV tiers: memory in front of disk, written behind."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import lmdb
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from npc_engine.blocks import Block, BlockCache, BlockDamage, BlockId, BlockKV, BlockStore, Tier
from npc_engine.errors import BlockMemoryError, BlockStoreError
from tests.blocks.kv_builders import IDENTITY, SHAPE, equal, make_block, make_kv

CPU = torch.device("cpu")
BYTES = 4 * SHAPE.num_bytes_per_token  # of a block of make_block's default length


def open_store(folder: Path, damage: list[BlockDamage] | None = None) -> BlockStore:
    on_damage = (lambda each: None) if damage is None else damage.append
    return BlockStore(folder, owner=IDENTITY.digest(), max_bytes=16 << 20, on_damage=on_damage)


def open_cache(folder: Path | None, num_blocks: int, damage: list[BlockDamage] | None = None) -> BlockCache:
    """A cache with room for `num_blocks` blocks."""
    store = None if folder is None else open_store(folder, damage)
    return BlockCache(SHAPE, CPU, max_bytes=num_blocks * BYTES, store=store)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "blocks"


def put(cache: BlockCache, *blocks: Block) -> None:
    """Put blocks one by one, each on disk before the next one comes."""
    for block in blocks:
        cache.put(block, make_kv(block))
        cache.flush()


def test_memory_then_disk_then_missing(folder: Path) -> None:
    """The three tiers of three blocks, and bringing the second back."""
    a, b, c = (make_block(seed) for seed in range(3))
    cache = open_cache(folder, 1)
    put(cache, a, b)
    assert [cache.tier(each) for each in (b, a, c)] == [Tier.MEMORY, Tier.DISK, Tier.MISSING]
    assert cache.acquire([a]) == ()
    assert equal(cache.get(a.id), make_kv(a))
    assert [cache.tier(each) for each in (b, a, c)] == [Tier.DISK, Tier.MEMORY, Tier.MISSING]
    assert cache.stats() == (1, BYTES, BYTES, 0, 1, 2)
    cache.release([a])
    cache.check_integrity()
    cache.close()


def test_what_was_evicted_is_on_disk(folder: Path) -> None:
    """Nothing is lost to a lack of memory."""
    blocks = [make_block(seed) for seed in range(6)]
    cache = open_cache(folder, 2)
    put(cache, *blocks)
    assert [cache.tier(block) for block in blocks] == [Tier.DISK] * 4 + [Tier.MEMORY] * 2
    cache.close()
    again = open_cache(folder, 6)
    assert again.acquire(blocks) == ()
    assert all(equal(again.get(block.id), make_kv(block)) for block in blocks)
    again.close()


def test_without_a_store_what_is_evicted_is_missing() -> None:
    """Memory alone is a cache, too."""
    a, b = make_block(1), make_block(2)
    cache = open_cache(None, 1)
    put(cache, a, b)
    assert (cache.tier(a), cache.tier(b)) == (Tier.MISSING, Tier.MEMORY)
    assert cache.stats().num_unwritten == 0
    assert cache.acquire([a]) == (a,)


def test_missing_blocks_are_not_held(folder: Path) -> None:
    """`acquire` returns them in order and holds the others."""
    here, gone, lost = (make_block(seed) for seed in range(3))
    cache = open_cache(folder, 4)
    put(cache, here)
    assert cache.acquire([gone, here, lost]) == (gone, lost)
    assert cache._pool.ref_count(here.id) == 1
    cache.release([here])
    cache.close()


def test_more_than_memory_holds_nothing_afterwards(folder: Path) -> None:
    """Loading three blocks into room for two fails as a whole, and every reference is given back."""
    blocks = [make_block(seed) for seed in range(3)]
    cache = open_cache(folder, 3)
    put(cache, *blocks)
    cache.close()
    small = open_cache(folder, 2)
    with pytest.raises(BlockMemoryError):
        small.acquire(blocks)
    assert all(small._pool.ref_count(each) == 0 for each in small._pool)
    small.check_integrity()
    assert small.acquire(blocks[1:]) == ()
    small.release(blocks[1:])
    small.close()


def test_a_block_larger_than_memory_is_refused_and_evicts_nothing(folder: Path) -> None:
    """`put` of too large a block leaves the cache as it was."""
    a, huge = make_block(1), make_block(2, 100)
    cache = open_cache(folder, 2)
    put(cache, a)
    with pytest.raises(BlockMemoryError):
        put(cache, huge)
    assert cache.tier(a) is Tier.MEMORY
    cache.check_integrity()
    cache.close()


def test_put_of_what_is_here_changes_nothing(folder: Path) -> None:
    """The first keys stay: whoever holds them may be reading them."""
    block = make_block(1)
    cache = open_cache(folder, 2)
    put(cache, block)
    held = cache.get(block.id)
    cache.put(block, make_kv(block))
    assert cache.get(block.id) is held
    cache.close()


def test_after_a_flush_everything_is_on_disk(folder: Path) -> None:
    """However many blocks came at once."""
    blocks = [make_block(seed) for seed in range(50)]
    cache = open_cache(folder, 64)
    for block in blocks:
        cache.put(block, make_kv(block))
    cache.flush()
    assert cache.stats().num_unwritten == 0
    reader = cache._store
    assert reader is not None
    assert all(block.id in reader for block in blocks)
    cache.close()


class SlowStore(BlockStore):
    """A disk that takes nothing until it is told to."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, owner=IDENTITY.digest(), max_bytes=16 << 20)
        self.ready = threading.Event()

    def put(self, blocks: Iterable[tuple[BlockId, BlockKV]]) -> None:
        assert self.ready.wait(20)
        super().put(blocks)


def test_what_waits_to_be_written_is_not_missing(folder: Path) -> None:
    """The docstring's promise: a block reaches the disk when it is evicted."""
    a, b = make_block(1), make_block(2)
    store = SlowStore(folder)
    cache = BlockCache(SHAPE, CPU, max_bytes=BYTES, store=store)
    try:
        cache.put(a, make_kv(a))
        cache.put(b, make_kv(b))
        assert cache.tier(a) is not Tier.MISSING
    finally:
        store.ready.set()
        cache.close()


class BrokenStore(BlockStore):
    """A disk that fails in a way that BlockStore does not translate."""

    def put(self, blocks: Iterable[tuple[BlockId, BlockKV]]) -> None:
        raise lmdb.MapFullError("full")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_writer_that_fails_does_not_stop_the_cache(folder: Path) -> None:
    """After whatever error, `flush` ends: with what happened."""
    cache = BlockCache(SHAPE, CPU, max_bytes=8 * BYTES, store=BrokenStore(folder, owner=bytes(32), max_bytes=1 << 20))
    cache.put(make_block(1), make_kv(make_block(1)))
    writer = cache._writer
    assert writer is not None
    writer._thread.join(0.3)
    cache.put(make_block(2), make_kv(make_block(2)))
    ended = threading.Event()

    def flush() -> None:
        with pytest.raises(BlockStoreError):
            cache.flush()
        ended.set()

    threading.Thread(target=flush, daemon=True).start()
    try:
        assert ended.wait(1)
    finally:
        cache.close()


def test_close_writes_the_rest_and_may_be_called_again(folder: Path) -> None:
    """After close, everything is on disk."""
    block = make_block(1)
    cache = open_cache(folder, 8)
    put(cache, block)
    cache.close()
    cache.close()
    again = open_cache(folder, 8)
    assert again.tier(block) is Tier.DISK
    again.close()


def test_what_was_loaded_is_not_written_again(folder: Path) -> None:
    """A block that came from disk is not dirty."""
    block = make_block(1)
    cache = open_cache(folder, 8)
    put(cache, block)
    cache.close()
    again = open_cache(folder, 8)
    again.acquire([block])
    assert again.stats().num_unwritten == 0
    again.close()


def test_another_shape_under_our_id_is_never_served(folder: Path) -> None:
    """Intact, but of too many tokens or another precision: the block has to be encoded again, and is written again."""
    longer, other_dtype = make_block(1), make_block(2)
    store = open_store(folder)
    store.put([(longer.id, make_kv(make_block(1, 9)))])
    store.put([(other_dtype.id, make_kv(other_dtype, SHAPE._replace(dtype=torch.float16)))])
    store.close()
    cache = open_cache(folder, 8)
    assert cache.acquire([longer, other_dtype]) == (longer, other_dtype)
    put(cache, longer, other_dtype)
    cache.close()
    again = open_cache(folder, 8)
    assert again.acquire([longer, other_dtype]) == ()
    assert equal(again.get(longer.id), make_kv(longer))
    again.close()


def test_another_shape_under_our_id_is_reported_and_deleted(folder: Path) -> None:
    """Like any other value that must not be served."""
    block = make_block(1)
    store = open_store(folder)
    store.put([(block.id, make_kv(make_block(1, 9)))])
    store.close()
    damage: list[BlockDamage] = []
    cache = open_cache(folder, 8, damage)
    assert cache.acquire([block]) == (block,)
    assert [each.block_id for each in damage] == [block.id]
    assert cache.tier(block) is Tier.MISSING
    cache.close()


BLOCKS = [make_block(seed, num_tokens=1 + seed % 4) for seed in range(10)]


class CacheMachine(RuleBasedStateMachine):
    """A cache against sets: what is held is in memory, what was put is never lost, memory is never exceeded."""

    @initialize(has_store=st.booleans(), num_tokens=st.integers(4, 16))
    def open(self, has_store: bool, num_tokens: int) -> None:
        self.has_store = has_store
        self.temporary = TemporaryDirectory()
        self.max_bytes = num_tokens * SHAPE.num_bytes_per_token
        self.computed: set[BlockId] = set()
        self.held: list[Block] = []
        self.reopen_cache()

    def reopen_cache(self) -> None:
        store = open_store(Path(self.temporary.name) / "blocks") if self.has_store else None
        self.cache = BlockCache(SHAPE, CPU, max_bytes=self.max_bytes, store=store)

    @rule(block=st.sampled_from(BLOCKS))
    def put(self, block: Block) -> None:
        try:
            self.cache.put(block, make_kv(block))
            self.cache.flush()
        except BlockMemoryError:
            held = {each.id: each.num_tokens for each in self.held}
            assert (sum(held.values()) + block.num_tokens) * SHAPE.num_bytes_per_token > self.max_bytes
        else:
            assert self.cache.tier(block) is Tier.MEMORY
            self.computed.add(block.id)

    @rule(blocks=st.lists(st.sampled_from(BLOCKS), max_size=4))
    def acquire(self, blocks: list[Block]) -> None:
        try:
            missing = self.cache.acquire(blocks)
        except BlockMemoryError:
            assert self.has_store, "without a store nothing is loaded"
            return
        if self.has_store:
            assert {block.id for block in missing} == {block.id for block in blocks} - self.computed
        self.held += [block for block in blocks if block not in missing]

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(self.held))
        self.held.remove(block)
        self.cache.release([block])

    @rule()
    def flush(self) -> None:
        self.cache.flush()
        assert self.cache.stats().num_unwritten == 0

    @precondition(lambda self: self.has_store)
    @rule()
    def close_and_open(self) -> None:
        self.cache.close()
        self.held.clear()
        self.reopen_cache()

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "cache"):
            return
        self.cache.check_integrity()
        assert self.cache.stats().num_bytes <= self.max_bytes
        for block in self.held:
            assert equal(self.cache.get(block.id), make_kv(block))
        for block in BLOCKS:
            if self.has_store:
                assert (self.cache.tier(block) is Tier.MISSING) == (block.id not in self.computed)
            assert self.cache.tier(block) is Tier.MISSING or block.id in self.computed

    def teardown(self) -> None:
        if hasattr(self, "cache"):
            self.cache.close()
            self.temporary.cleanup()


TestCacheAgainstSets = CacheMachine.TestCase
TestCacheAgainstSets.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
