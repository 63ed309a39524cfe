"""Paces the simulation: a beat at a time, and at once when somebody speaks."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from npc_engine.clock import Clock


class TickLoop:
    """Calls `on_tick` on every beat, `ticks_per_s` times a second counted from the start, and whenever it is woken.

    A beat that comes too late is skipped, not made up for: a busy machine ticks less often, never in bursts.
    """

    def __init__(self, on_tick: Callable[[], None], *, clock: Clock, ticks_per_s: float) -> None:
        self._on_tick = on_tick
        self._clock = clock
        self._period_s = 1 / ticks_per_s
        self._wake = asyncio.Event()
        self.num_skipped = 0
        self.max_lateness_s = 0.0

    def wake(self) -> None:
        """Tick now instead of on the next beat."""
        self._wake.set()

    async def run(self) -> None:
        """Tick until cancelled."""
        start_s = self._clock.now_s()
        beat = 1
        while True:
            due_s = start_s + beat * self._period_s
            if await self._clock.wait_for(self._wake, due_s):
                self._wake.clear()
            else:
                late_s = max(0.0, self._clock.now_s() - due_s)  # a timer may fire early
                self.max_lateness_s = max(self.max_lateness_s, late_s)
                num_skipped = math.floor(late_s / self._period_s)
                self.num_skipped += num_skipped
                beat += 1 + num_skipped
            self._on_tick()
