"""Time as a dependency: the engine asks a clock, tests move it by hand."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """A monotonic clock that can also wait."""

    def now_s(self) -> float:
        """Seconds since an arbitrary start; never goes back."""
        ...

    async def wait_for(self, event: asyncio.Event, deadline_s: float) -> bool:
        """Wait until `event` is set or :meth:`now_s` reaches `deadline_s`. True if the event came first."""
        ...


class MonotonicClock:
    """The machine's clock."""

    def now_s(self) -> float:
        return time.monotonic()

    async def wait_for(self, event: asyncio.Event, deadline_s: float) -> bool:
        timeout_s = deadline_s - self.now_s()
        if event.is_set():
            return True
        if timeout_s <= 0:
            await asyncio.sleep(0)  # a late loop must not starve the others
            return event.is_set()
        try:
            async with asyncio.timeout(timeout_s):
                await event.wait()
        except TimeoutError:
            return False
        return True


class ManualClock:
    """A clock for tests: it stands still until :meth:`advance` moves it."""

    def __init__(self) -> None:
        self._now_s = 0.0
        self._moved = asyncio.Condition()

    def now_s(self) -> float:
        return self._now_s

    async def advance(self, seconds: float) -> None:
        """Move the time forward and wake whoever waited for a deadline that has now passed."""
        async with self._moved:
            self._now_s += seconds
            self._moved.notify_all()
        await asyncio.sleep(0)

    async def wait_for(self, event: asyncio.Event, deadline_s: float) -> bool:
        async def deadline() -> None:
            async with self._moved:
                await self._moved.wait_for(lambda: self._now_s >= deadline_s)

        waiters = [asyncio.ensure_future(event.wait()), asyncio.ensure_future(deadline())]
        try:
            await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for waiter in waiters:
                waiter.cancel()
            await asyncio.gather(*waiters, return_exceptions=True)
        return event.is_set()
