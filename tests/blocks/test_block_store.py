"""Blocks on disk: what was written comes back bit for bit, and nothing else is ever served."""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import lmdb
import pytest
import torch

from npc_engine.blocks import Block, BlockDamage, BlockStore, KVShape
from npc_engine.blocks.store import FORMAT_VERSION
from npc_engine.errors import BlockStoreError
from tests.blocks.kv_builders import IDENTITY, SHAPE, equal, make_block, make_kv

OWNER = IDENTITY.digest()
HEADER = struct.Struct("<4sI32s16s")  # magic, version, owner, checksum


class Opened:
    """A store with what it reported."""

    def __init__(self, folder: Path, *, owner: bytes = OWNER, max_bytes: int = 16 << 20) -> None:
        self.damage: list[BlockDamage] = []
        self.store = BlockStore(folder, owner=owner, max_bytes=max_bytes, on_damage=self.damage.append)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    opened = Opened(tmp_path / "blocks")
    yield opened
    opened.store.close()


def rewrite(folder: Path, block: Block, change: Callable[[bytes], bytes]) -> None:
    """Change a value behind the store's back; nobody may have the folder open."""
    with (
        lmdb.open(str(folder), max_dbs=2, map_size=1 << 40) as env,
        env.begin(write=True, db=env.open_db(b"values")) as transaction,
    ):
        transaction.put(block.id, change(transaction.get(block.id)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_values_come_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    """Special values and the bits of NaN included, also after closing and opening again."""
    shape = SHAPE._replace(dtype=dtype)
    block = make_block(1, 6)
    kv = make_kv(block, shape)
    kv.k.view(-1)[:4] = torch.tensor([float("nan"), float("inf"), -0.0, 1e-30], dtype=dtype)
    first = Opened(tmp_path / "blocks")
    first.store.put([(block.id, kv)])
    assert equal(first.store.get(block.id), kv)
    first.store.close()
    second = Opened(tmp_path / "blocks")
    assert block.id in second.store
    assert equal(second.store.get(block.id), kv)
    assert second.damage == []
    second.store.close()


def test_a_slice_and_a_transposed_tensor_are_written_as_they_look(opened: Opened) -> None:
    """Strides are not part of a value."""
    block = make_block(1, 6)
    kv = make_kv(block)
    strided = type(kv)(kv.k.transpose(1, 2).contiguous().transpose(1, 2), kv.v)
    opened.store.put([(block.id, strided)])
    assert equal(opened.store.get(block.id), kv)


def test_what_is_not_there_is_none(opened: Opened) -> None:
    """A missing block is no damage."""
    block = make_block(1)
    assert opened.store.get(block.id) is None
    assert block.id not in opened.store
    opened.store.delete([block.id])
    assert opened.damage == []


def flip(position: int) -> Callable[[bytes], bytes]:
    def change(value: bytes) -> bytes:
        changed = bytearray(value)
        changed[position] ^= 1
        return bytes(changed)

    return change


def header(**fields: object) -> Callable[[bytes], bytes]:
    """Change fields of the header, the checksum stays right."""

    def change(value: bytes) -> bytes:
        old = dict(zip(("magic", "version", "owner", "checksum"), HEADER.unpack_from(value), strict=True))
        return HEADER.pack(*(old | fields).values()) + value[HEADER.size :]

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda value: value[:-1], "checksum"),
        (lambda value: value[: HEADER.size], "checksum"),
        (lambda value: value[:10], "truncated"),
        (lambda value: b"", "truncated"),
        (lambda value: value + b"\0", "checksum"),
        (flip(-1), "checksum"),
        (flip(HEADER.size + 3), "checksum"),
        (flip(HEADER.size - 1), "checksum"),
        (header(magic=b"ELSE"), "not a block"),
        (header(version=FORMAT_VERSION + 1), "format version"),
        (header(owner=bytes(32)), "another model"),
        (lambda value: b"\x89PNG" + bytes(200), "not a block"),
    ],
    ids=str,
)
def test_what_is_not_exactly_a_block_is_refused(tmp_path: Path, change: Callable[[bytes], bytes], reason: str) -> None:
    """Truncated, flipped, foreign or newer: not served, reported, deleted; its neighbour is untouched."""
    folder = tmp_path / "blocks"
    block, neighbour = make_block(1), make_block(2)
    first = Opened(folder)
    first.store.put([(block.id, make_kv(block)), (neighbour.id, make_kv(neighbour))])
    first.store.close()
    rewrite(folder, block, change)
    second = Opened(folder)
    assert second.store.get(block.id) is None
    assert [damage.block_id for damage in second.damage] == [block.id]
    assert reason in second.damage[0].reason
    assert block.id not in second.store
    assert second.store.get(block.id) is None
    assert len(second.damage) == 1, "what was deleted is missing, not damaged"
    assert equal(second.store.get(neighbour.id), make_kv(neighbour))
    second.store.close()


def test_every_single_flipped_bit_is_found(tmp_path: Path) -> None:
    """All bits of one value, one after the other."""
    folder = tmp_path / "blocks"
    block = make_block(1, 1)
    one = KVShape(1, 1, 2, torch.float16)
    first = Opened(folder)
    first.store.put([(block.id, make_kv(block, one))])
    parse, value = first.store._parse, b""
    with first.store._env.begin(first.store._values) as transaction:
        value = bytes(transaction.get(block.id))
    assert equal(parse(value), make_kv(block, one))
    for bit in range(8 * len(value)):
        changed = bytearray(value)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Exception, match=r".") as caught:
            parse(bytes(changed))
        assert type(caught.value).__name__ == "_DamagedValueError"
    first.store.close()


def test_verify_finds_and_deletes_damage_of_any_model(tmp_path: Path) -> None:
    """`cache verify` checks blocks of other models, too, and leaves those that are whole."""
    folder = tmp_path / "blocks"
    mine, theirs, damaged = (make_block(seed) for seed in range(3))
    other = Opened(folder, owner=bytes(32))
    other.store.put([(theirs.id, make_kv(theirs))])
    other.store.close()
    first = Opened(folder)
    first.store.put([(mine.id, make_kv(mine)), (damaged.id, make_kv(damaged))])
    first.store.close()
    rewrite(folder, damaged, flip(-1))
    second = Opened(folder)
    found = dict(second.store.verify())
    assert {each: damage is None for each, damage in found.items()} == {
        mine.id: True,
        theirs.id: True,
        damaged.id: False,
    }
    assert damaged.id not in second.store
    assert second.store.stats().num_blocks == 2
    second.store.close()


@pytest.fixture
def ages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every write is one second later than the one before."""
    now = iter(range(1, 1_000_000))
    monkeypatch.setattr("npc_engine.blocks.store.time.time", lambda: float(next(now)))


def test_prune_deletes_the_oldest_and_keeps_what_it_is_told(opened: Opened, ages: None) -> None:
    """Of five blocks two may stay; the oldest is kept by name."""
    blocks = [make_block(seed) for seed in range(5)]
    for block in blocks:
        opened.store.put([(block.id, make_kv(block))])
    size = opened.store.stats().num_bytes // 5
    assert opened.store.prune(max_bytes=2 * size, keep={blocks[0].id}) == 3
    assert [block in opened.store for block in (each.id for each in blocks)] == [True, False, False, False, True]
    assert opened.store.prune(max_bytes=2 * size) == 0
    assert opened.store.prune(max_bytes=0, keep={blocks[0].id}) == 1
    assert opened.store.stats().num_blocks == 1


def test_a_block_written_again_is_young_again(opened: Opened, ages: None) -> None:
    """Writing renews; the value is replaced, not doubled."""
    old, new = make_block(1), make_block(2)
    for block in (old, new, old):
        opened.store.put([(block.id, make_kv(block))])
    assert opened.store.stats().num_blocks == 2
    opened.store.prune(max_bytes=opened.store.stats().num_bytes // 2)
    assert (old.id in opened.store, new.id in opened.store) == (True, False)


@pytest.mark.parametrize("num_tokens", [4, 64, 256])
def test_a_full_store_makes_room_by_pruning_the_oldest(tmp_path: Path, ages: None, num_tokens: int) -> None:
    """A store of 1 MiB takes 3 MiB of blocks, one after the other; the youngest are there."""
    opened = Opened(tmp_path / "blocks", max_bytes=1 << 20)
    blocks = [make_block(seed, num_tokens) for seed in range(3 * 2**20 // (64 * num_tokens + 1000))]
    for block in blocks:
        opened.store.put([(block.id, make_kv(block))])
    assert equal(opened.store.get(blocks[-1].id), make_kv(blocks[-1]))
    assert opened.store.get(blocks[0].id) is None
    there = [block.id in opened.store for block in blocks]
    assert there == sorted(there), "only the oldest went"
    assert opened.store.stats().num_bytes <= 1 << 20
    opened.store.close()


def test_a_batch_larger_than_the_store_is_a_clear_error(tmp_path: Path) -> None:
    """The message names the setting; nothing is half written."""
    opened = Opened(tmp_path / "blocks", max_bytes=1 << 18)
    block = make_block(1, 5000)
    with pytest.raises(BlockStoreError, match="max_store_size"):
        opened.store.put([(block.id, make_kv(block))])
    assert block.id not in opened.store
    opened.store.close()


def test_a_file_in_the_way_is_a_clear_error(tmp_path: Path) -> None:
    """The message names the folder and the option."""
    (tmp_path / "blocks").write_text("not a folder")
    with pytest.raises(BlockStoreError, match="--data-dir"):
        Opened(tmp_path / "blocks")


def test_a_data_file_that_is_no_database_is_a_clear_error(tmp_path: Path) -> None:
    """Foreign bytes in place of the whole file."""
    (tmp_path / "blocks").mkdir()
    (tmp_path / "blocks" / "data.mdb").write_bytes(b"not LMDB " * 4000)
    with pytest.raises(BlockStoreError, match="delete the folder"):
        Opened(tmp_path / "blocks")


SECOND_PROCESS = """
import sys
from pathlib import Path
from npc_engine.blocks import BlockStore
from tests.blocks.kv_builders import IDENTITY, equal, make_block, make_kv
store = BlockStore(Path(sys.argv[1]), owner=IDENTITY.digest(), max_bytes=int(sys.argv[2]))
mine, theirs = make_block(1), make_block(2)
assert equal(store.get(mine.id), make_kv(mine))
store.put([(theirs.id, make_kv(theirs))])
for seed in range(10, 10 + int(sys.argv[3])):
    store.put([(make_block(seed, 256).id, make_kv(make_block(seed, 256)))])
store.close()
"""


def run_second_process(folder: Path, max_bytes: int, num_more: int = 0) -> None:
    command = [sys.executable, "-c", SECOND_PROCESS, str(folder), str(max_bytes), str(num_more)]
    subprocess.run(command, check=True, timeout=60, cwd=Path(__file__).parents[2])


def test_a_second_process_reads_and_writes_while_the_first_has_it_open(opened: Opened) -> None:
    """What one process wrote, the other serves, both ways."""
    mine, theirs = make_block(1), make_block(2)
    opened.store.put([(mine.id, make_kv(mine))])
    run_second_process(opened.store.folder, 16 << 20)
    assert equal(opened.store.get(theirs.id), make_kv(theirs))
    assert equal(opened.store.get(mine.id), make_kv(mine))


def test_another_process_may_have_a_larger_limit(tmp_path: Path) -> None:
    """Two games share a folder with different max_store_size; the one with the smaller keeps working."""
    opened = Opened(tmp_path / "blocks", max_bytes=1 << 20)
    mine, theirs = make_block(1), make_block(2)
    opened.store.put([(mine.id, make_kv(mine))])
    run_second_process(opened.store.folder, 64 << 20, num_more=120)
    assert equal(opened.store.get(theirs.id), make_kv(theirs))
    opened.store.close()


KILLED_WRITERS = """
import os, random, signal, sys
from pathlib import Path
from npc_engine.blocks import BlockStore
from tests.blocks.kv_builders import IDENTITY, equal, make_block, make_kv

folder, num_rounds = Path(sys.argv[1]), int(sys.argv[2])
random_of = random.Random(7)
BATCH = 3
BLOCKS = [make_block(seed, 64) for seed in range(90)]
KV = [make_kv(block) for block in BLOCKS]
for round in range(num_rounds):
    read_end, write_end = os.pipe()
    writer = os.fork()
    if writer == 0:
        store = BlockStore(folder, owner=IDENTITY.digest(), max_bytes=64 << 20)
        for start in range(0, len(BLOCKS), BATCH):
            store.put((BLOCKS[i].id, KV[i]) for i in range(start, start + BATCH))
            os.write(write_end, bytes([start // BATCH]))
        signal.pause()
    acknowledged = [os.read(read_end, 1)[0] for _ in range(random_of.randrange(1, 25))][-1]
    os.kill(writer, signal.SIGKILL)  # while it writes the next ones
    os.waitpid(writer, 0)
    os.close(write_end)
    acknowledged = max([acknowledged, *os.read(read_end, 1000)])
    os.close(read_end)
    reader = os.fork()
    if reader == 0:
        try:
            damage = []
            store = BlockStore(folder, owner=IDENTITY.digest(), max_bytes=64 << 20, on_damage=damage.append)
            values = [store.get(block.id) for block in BLOCKS]
            there = [value is not None for value in values]
            assert damage == []
            assert all(equal(value, kv) for value, kv in zip(values, KV) if value is not None)
            assert all(there[: (acknowledged + 1) * BATCH]), "an acknowledged batch is there"
            assert all(len(set(there[i : i + BATCH])) == 1 for i in range(0, len(there), BATCH)), "whole or not at all"
            store.prune(max_bytes=0)
            store.close()
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(reader, 0)[1]) == 0, f"round {round}"
print("fine")
"""


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="needs fork")
def test_a_writer_killed_at_any_moment_leaves_whole_batches(tmp_path: Path) -> None:
    """20 times kill -9 in the middle of writing: acknowledged blocks are served, no batch in part, no damage."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED_WRITERS, str(tmp_path / "blocks"), "20"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("fine\n", 0), done.stderr


class CorruptedEnvironment:
    """What LMDB does when pages of its tree are damaged (2 of 60 files with 20 flipped bits each)."""

    def begin(self, *_: object, **__: object) -> object:
        raise lmdb.PageNotFoundError("mdb_get: MDB_PAGE_NOTFOUND: Requested page not found")

    def close(self) -> None: ...


@pytest.mark.parametrize("call", ["get", "contains"])
def test_a_damaged_tree_is_like_a_missing_block(opened: Opened, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """Not served, reported, and the talk goes on."""
    monkeypatch.setattr(opened.store, "_env", CorruptedEnvironment())
    block = make_block(1)
    if call == "get":
        assert opened.store.get(block.id) is None
        assert [damage.block_id for damage in opened.damage] == [block.id]
    else:
        assert block.id not in opened.store
