"""Blocks on disk: content-addressed, checksummed, shared by every process that opens the same folder."""

from __future__ import annotations

import contextlib
import struct
import time
from collections.abc import Callable, Container, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import lmdb
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load as safetensors_load
from safetensors.torch import save as safetensors_save

from npc_engine.blocks.block import BlockId
from npc_engine.blocks.kv import BlockKV
from npc_engine.errors import BlockStoreError

FORMAT_VERSION = 1

# Address space, not disk: the file grows as it is used. It is the same for every process that opens the folder,
# whatever its limit: LMDB lets nobody read a file that another process has grown beyond the reader's map.
MAP_SIZE = 1 << 40

# A value is: magic, format version, owner digest, checksum of the payload; then the payload, a safetensors image of
# "k" and "v", which carries dtype and shape itself.
_HEADER = struct.Struct("<4sI32s16s")
_MAGIC = b"NPCB"
_PUTS_BETWEEN_COUNTS = 64  # counting reads the whole index
_INDEX = struct.Struct("<dQ")  # time of writing (seconds since 1970), bytes of the value


class BlockDamage(NamedTuple):
    """A value that could not be served. It was deleted; its block will be encoded again."""

    block_id: BlockId
    reason: str


class StoreStats(NamedTuple):
    num_blocks: int
    num_bytes: int
    max_bytes: int


class BlockStore:
    """A folder of blocks, in LMDB.

    `owner` is the digest of the model identity whose blocks are read and written (32 bytes); a value of another owner
    under an id of ours can only be a forgery or damage, and is treated as such. `max_bytes` bounds the values,
    `map_size` the address space (LMDB's setting of that name). `on_damage` is told of each value that was refused.

    Reads copy the value inside a short transaction and parse it outside. Writes are atomic: a crash leaves the whole
    batch or nothing of it. Safe across threads and processes.
    """

    def __init__(
        self,
        folder: Path,
        *,
        owner: bytes,
        max_bytes: int,
        map_size: int = MAP_SIZE,
        on_damage: Callable[[BlockDamage], None] = lambda damage: None,
    ) -> None:
        assert len(owner) == 32
        self.folder = folder
        self._owner = owner
        self._max_bytes = max_bytes
        self._num_bytes = 0  # what the values take, as far as this process knows
        self._puts_until_count = 0
        self._on_damage = on_damage
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # sync=False would risk the tree; metasync=False only risks the last batch, which can be encoded again.
            self._env = lmdb.open(str(folder), map_size=map_size, max_dbs=2, metasync=False, max_readers=512)
            self._values = self._env.open_db(b"values")
            self._index = self._env.open_db(b"index")
        except (OSError, lmdb.Error) as error:
            if "already open" in str(error):
                raise BlockStoreError(
                    f"{folder}: open already in this process; give each engine a data_dir of its own"
                ) from error
            raise BlockStoreError(
                f"{folder}: the block store can't be opened ({error}); it holds nothing that can't be computed again: "
                "delete the folder, or choose another with --data-dir"
            ) from error

    def close(self) -> None:
        """Idempotent."""
        self._env.close()

    def __contains__(self, block_id: BlockId) -> bool:
        try:
            with self._env.begin(self._index) as transaction:
                return transaction.get(block_id) is not None
        except lmdb.Error:
            return False  # get() reports it

    def get(self, block_id: BlockId) -> BlockKV | None:
        """The block's keys and values on the CPU, or None if they are not here or were refused (and deleted)."""
        try:
            with self._env.begin(self._values) as transaction:
                value = transaction.get(block_id)
        except lmdb.Error as error:
            self._on_damage(BlockDamage(block_id, f"unreadable: {error}"))
            return None
        if value is None:
            return None
        try:
            return self._parse(value)
        except _DamagedValueError as error:
            self.refuse(block_id, str(error))
            return None

    def put(self, blocks: Iterable[tuple[BlockId, BlockKV]]) -> None:
        """Write these blocks in one transaction. When `max_bytes` would be exceeded, the oldest quarter goes first."""
        values = [(block_id, self._serialize(kv)) for block_id, kv in blocks]
        num_bytes = sum(len(value) for _, value in values)
        if num_bytes > self._max_bytes:
            raise BlockStoreError(
                f"{self.folder}: {num_bytes / 2**20:.1f} MiB of blocks don't fit in {self._max_bytes / 2**20:.1f} MiB; "
                "raise max_store_size (--max-store-size)"
            )
        try:
            self._make_room(num_bytes)
            self._write(values)
            self._num_bytes += num_bytes
        except lmdb.Error as error:
            raise BlockStoreError(
                f"{self.folder}: the block store can't be written ({error}); check the disk"
            ) from error

    def refuse(self, block_id: BlockId, reason: str) -> None:
        """Delete a value that must not be served, and report it."""
        with contextlib.suppress(BlockStoreError):  # where it can't be deleted, it is refused again the next time
            self.delete([block_id])
        self._on_damage(BlockDamage(block_id, reason))

    def delete(self, block_ids: Iterable[BlockId]) -> None:
        """Delete these blocks; those that are not here are passed over."""
        try:
            with self._env.begin(write=True) as transaction:
                for block_id in block_ids:
                    transaction.delete(block_id, db=self._values)
                    transaction.delete(block_id, db=self._index)
        except lmdb.Error as error:
            raise self._unusable(error) from error

    def prune(self, max_bytes: int, keep: Container[BlockId] = ()) -> int:
        """Delete the oldest blocks, those of `keep` excepted, until the values take at most `max_bytes`.

        Returns how many.
        """
        index = sorted(self._entries(), key=lambda entry: entry[1])
        num_bytes = sum(size for _, _, size in index)
        doomed = []
        for block_id, _, size in index:
            if num_bytes <= max_bytes:
                break
            if block_id not in keep:
                doomed.append(block_id)
                num_bytes -= size
        self.delete(doomed)
        return len(doomed)

    def verify(self) -> Iterator[tuple[BlockId, BlockDamage | None]]:
        """Check every block; damaged ones are deleted. Blocks of other models are checked, too."""
        for block_id, _, _ in list(self._entries()):
            with self._env.begin(self._values) as transaction:
                value = transaction.get(block_id)
            if value is None:  # deleted by another process meanwhile
                continue
            try:
                self._parse(value, any_owner=True)
            except _DamagedValueError as error:
                self.delete([block_id])
                yield block_id, BlockDamage(block_id, str(error))
            else:
                yield block_id, None

    def stats(self) -> StoreStats:
        sizes = [size for _, _, size in self._entries()]
        return StoreStats(len(sizes), sum(sizes), self._max_bytes)

    def _make_room(self, num_bytes: int) -> None:
        if self._puts_until_count == 0 or self._num_bytes + num_bytes > self._max_bytes:
            self._num_bytes = self.stats().num_bytes  # other processes write, too
            self._puts_until_count = _PUTS_BETWEEN_COUNTS
        self._puts_until_count -= 1
        if self._num_bytes + num_bytes > self._max_bytes:
            self.prune(max_bytes=min(self._max_bytes * 3 // 4, self._max_bytes - num_bytes))
            self._num_bytes = self.stats().num_bytes

    def _entries(self) -> Iterator[tuple[BlockId, float, int]]:
        """Id, time of writing and size of every block, from the index alone."""
        try:
            with self._env.begin(self._index) as transaction:
                entries = [(BlockId(key), *_INDEX.unpack(value)) for key, value in transaction.cursor()]
        except lmdb.Error as error:
            raise self._unusable(error) from error
        return iter(entries)

    def _unusable(self, error: Exception) -> BlockStoreError:
        return BlockStoreError(
            f"{self.folder}: the block store can't be used ({error}); check the disk, or delete the folder: it holds "
            "nothing that can't be computed again"
        )

    def _write(self, values: list[tuple[BlockId, bytes]]) -> None:
        now_s = time.time()
        with self._env.begin(write=True) as transaction:
            for block_id, value in values:
                transaction.put(block_id, value, db=self._values)
                transaction.put(block_id, _INDEX.pack(now_s, len(value)), db=self._index)

    def _serialize(self, kv: BlockKV) -> bytes:
        payload = safetensors_save({"k": kv.k.cpu().contiguous(), "v": kv.v.cpu().contiguous()})
        checksum = xxhash.xxh3_128_digest(payload)
        return _HEADER.pack(_MAGIC, FORMAT_VERSION, self._owner, checksum) + payload

    def _parse(self, value: bytes, *, any_owner: bool = False) -> BlockKV:
        if len(value) < _HEADER.size:
            raise _DamagedValueError("truncated")
        magic, version, owner, checksum = _HEADER.unpack_from(value)
        if magic != _MAGIC:
            raise _DamagedValueError("not a block")
        if version != FORMAT_VERSION:
            raise _DamagedValueError(f"format version {version}, this release reads {FORMAT_VERSION}")
        if owner != self._owner and not any_owner:
            raise _DamagedValueError("written for another model")
        payload = value[_HEADER.size :]
        if xxhash.xxh3_128_digest(payload) != checksum:
            raise _DamagedValueError("checksum mismatch")
        try:
            tensors = safetensors_load(payload)
            return BlockKV(tensors["k"], tensors["v"])
        except (SafetensorError, KeyError) as error:
            raise _DamagedValueError(f"unreadable payload: {error}") from error


class _DamagedValueError(Exception):
    """A value that must not be served."""
