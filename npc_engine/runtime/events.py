"""What the engine tells those who listen."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from npc_engine.errors import EngineClosedError

_MAX_QUEUED = 64


@dataclass(frozen=True, slots=True)
class WorldChange:
    """The world at `tick`: the entities that changed, and how many blocks that somebody might soon ask for did."""

    tick: int
    entities: tuple[str, ...]
    num_changed_blocks: int

    def merged(self, later: WorldChange) -> WorldChange:
        """Both changes as one."""
        entities = tuple(sorted({*self.entities, *later.entities}))
        return WorldChange(later.tick, entities, self.num_changed_blocks + later.num_changed_blocks)


class Changes:
    """One listener's queue of changes. When it is slow, the newest ones are merged: it misses no entity."""

    def __init__(self) -> None:
        self._queue: list[WorldChange] = []
        self._wake = asyncio.Event()
        self._is_closed = False

    def __aiter__(self) -> AsyncIterator[WorldChange]:
        return self

    async def __anext__(self) -> WorldChange:
        while not self._queue:
            if self._is_closed:
                raise EngineClosedError("the engine is closed")
            self._wake.clear()
            await self._wake.wait()
        return self._queue.pop(0)

    def put(self, change: WorldChange) -> None:
        if len(self._queue) >= _MAX_QUEUED:
            change = self._queue.pop().merged(change)
        self._queue.append(change)
        self._wake.set()

    def close(self) -> None:
        self._is_closed = True
        self._wake.set()


class Broadcaster:
    """Hands every change to every listener."""

    def __init__(self) -> None:
        self._listeners: set[Changes] = set()
        self._is_closed = False

    @asynccontextmanager
    async def subscribe(self) -> AsyncIterator[Changes]:
        """Changes from now on; :class:`EngineClosedError` ends them."""
        changes = Changes()
        if self._is_closed:
            changes.close()
        self._listeners.add(changes)
        try:
            yield changes
        finally:
            self._listeners.discard(changes)

    def publish(self, change: WorldChange) -> None:
        for listener in self._listeners:
            listener.put(change)

    def close(self) -> None:
        """Idempotent. Listeners still get what is in their queues."""
        self._is_closed = True
        for listener in self._listeners:
            listener.close()
