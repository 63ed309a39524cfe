"""Writes blocks to the store on a thread of its own: an fsync can take longer than a whole reply may."""

from __future__ import annotations

import queue
import threading

from npc_engine.blocks.block import BlockId
from npc_engine.blocks.kv import BlockKV
from npc_engine.blocks.store import BlockStore
from npc_engine.errors import BlockStoreError

_MAX_QUEUED_BYTES = 256 << 20  # tensors that stay in memory until they are written
_MAX_BATCH = 32  # blocks in one transaction


class StoreWriter:
    """Write-behind for a :class:`BlockStore`.

    What waits to be written when the process dies is encoded again. After a failed write nothing more is written, and
    :meth:`flush` raises what happened.
    """

    def __init__(self, store: BlockStore) -> None:
        self._store = store
        self._queue: queue.Queue[tuple[BlockId, BlockKV] | None] = queue.Queue()
        self._room = threading.Condition()
        self._num_bytes = 0
        self._pending: dict[BlockId, BlockKV] = {}
        self._error: BlockStoreError | None = None
        self._thread = threading.Thread(target=self._run, name="npc-engine-store", daemon=True)
        self._thread.start()

    @property
    def num_pending(self) -> int:
        """Blocks that are not on disk yet."""
        return len(self._pending)

    def get(self, block_id: BlockId) -> BlockKV | None:
        """A block that waits to be written."""
        return self._pending.get(block_id)

    def put(self, block_id: BlockId, kv: BlockKV) -> None:
        """Have a block written soon. Waits when the disk falls far behind. `kv` must not change any more."""
        with self._room:
            self._room.wait_for(lambda: self._num_bytes < _MAX_QUEUED_BYTES)
            self._num_bytes += kv.num_bytes
        self._pending[block_id] = kv
        self._queue.put((block_id, kv))

    def flush(self) -> None:
        """Wait until everything is on disk. Raises :class:`BlockStoreError` if something could not be written."""
        self._queue.join()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Write what is left and end the thread. Idempotent; raises nothing."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    def _run(self) -> None:
        while (first := self._queue.get()) is not None:
            batch = [first]
            while len(batch) < _MAX_BATCH and not self._queue.empty():
                following = self._queue.get()
                if following is None:
                    self._queue.put(None)  # end after this batch
                    self._queue.task_done()
                    break
                batch.append(following)
            try:
                if self._error is None:
                    self._store.put(batch)
            except BlockStoreError as error:
                self._error = error
            except Exception as error:  # whatever it is, the model must not wait for this thread for ever
                self._error = BlockStoreError(f"{self._store.folder}: the block store can't be written ({error!r})")
            finally:
                with self._room:
                    self._num_bytes -= sum(kv.num_bytes for _, kv in batch)
                    self._room.notify()
                for block_id, _ in batch:
                    self._pending.pop(block_id, None)
                    self._queue.task_done()
        self._queue.task_done()
