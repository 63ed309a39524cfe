"""The beat of the simulation, on a clock that is moved by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from npc_engine.clock import ManualClock
from npc_engine.runtime.tick_loop import TickLoop


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


class Beats:
    """A running loop of one tick a second, and the times of its ticks."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.times: list[float] = []
        self.cost_s = 0.0
        self.loop = TickLoop(self.tick, clock=clock, ticks_per_s=1)

    def tick(self) -> None:
        self.times.append(self.clock.now_s())
        self.clock._now_s += self.cost_s  # this tick takes time
        self.cost_s = 0.0

    async def pass_time(self, *seconds: float) -> None:
        for each in seconds:
            await self.clock.advance(each)
            await settle()


@asynccontextmanager
async def beating(clock: ManualClock | None = None) -> AsyncIterator[Beats]:
    beats = Beats(clock or ManualClock())
    task = asyncio.create_task(beats.loop.run())
    await settle()
    try:
        yield beats
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_the_beat_is_counted_from_the_start() -> None:
    """Lateness of one beat does not move the next ones."""
    async with beating() as beats:
        await beats.pass_time(0.5, 0.5, 1.25, 0.75, 1.0)
        assert beats.times == [1.0, 2.25, 3.0, 4.0]
        assert beats.loop.num_skipped == 0
        assert beats.loop.max_lateness_s == 0.25


async def test_the_first_beat_is_one_period_after_the_start() -> None:
    """Nothing ticks before."""
    async with beating() as beats:
        await beats.pass_time(0.99)
        assert beats.times == []


async def test_missed_beats_are_skipped_not_made_up_for() -> None:
    """After 3.5 s of standstill there is one tick, and the next one on the beat."""
    async with beating() as beats:
        await beats.pass_time(1.0, 3.5, 0.25, 0.25)
        assert beats.times == [1.0, 4.5, 5.0]
        assert beats.loop.num_skipped == 2


async def test_a_tick_that_takes_longer_than_a_beat_skips_beats() -> None:
    """A busy machine ticks less often, never in bursts."""
    async with beating() as beats:
        beats.cost_s = 2.5
        await beats.pass_time(1.0)
        await beats.pass_time(0.5)
        assert beats.times == [1.0, 3.5, 4.0]


async def test_waking_ticks_at_once_and_keeps_the_beat() -> None:
    """No time passes until the tick; the next beat comes when it would have come."""
    async with beating() as beats:
        await beats.pass_time(0.25)
        beats.loop.wake()
        await settle()
        assert beats.times == [0.25]
        await beats.pass_time(0.75)
        assert beats.times == [0.25, 1.0]


async def test_waking_several_times_is_one_tick() -> None:
    """What wakes the loop twice before it runs is taken in together."""
    async with beating() as beats:
        for _ in range(3):
            beats.loop.wake()
        await settle()
        assert beats.times == [0.0]


async def test_waking_before_the_start_is_not_lost() -> None:
    """An utterance may come before the first wait."""
    beats = Beats(ManualClock())
    beats.loop.wake()
    task = asyncio.create_task(beats.loop.run())
    await settle()
    assert beats.times == [0.0]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


class CoarseClock(ManualClock):
    """Wakes a little early, as timers of coarse resolution do (Windows: up to 16 ms)."""

    async def wait_for(self, event: asyncio.Event, deadline_s: float) -> bool:
        return await super().wait_for(event, deadline_s - 0.01)


async def test_a_timer_that_fires_early_is_one_beat() -> None:
    """asyncio fires up to one clock resolution early: no double tick."""
    async with beating(CoarseClock()) as beats:
        await beats.pass_time(0.99)
        assert beats.times == [0.99]
        assert beats.loop.num_skipped == 0
