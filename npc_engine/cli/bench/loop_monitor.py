"""How long the event loop was blocked."""

from __future__ import annotations

import asyncio
import time
from types import TracebackType
from typing import Self

_BEAT_S = 0.005


class LoopMonitor:
    """Beats on the running event loop and remembers the longest time that a beat came late::

    async with LoopMonitor() as monitor:
        ...
    print(monitor.max_blocked_ms)
    """

    def __init__(self) -> None:
        self.max_blocked_ms = 0.0
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._beat())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _beat(self) -> None:
        while True:
            due_s = time.perf_counter() + _BEAT_S
            await asyncio.sleep(_BEAT_S)
            self.max_blocked_ms = max(self.max_blocked_ms, (time.perf_counter() - due_s) * 1000)
