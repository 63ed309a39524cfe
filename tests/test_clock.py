"""Time that tests move by hand, and the machine's own."""

from __future__ import annotations

import asyncio

from npc_engine.clock import ManualClock, MonotonicClock


async def settle() -> None:
    """Let every task run until it waits for something."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_manual_clock_stands_still() -> None:
    """Nothing but `advance` moves it, and it wakes whoever's deadline has passed."""
    clock = ManualClock()
    early, late = (asyncio.ensure_future(clock.wait_for(asyncio.Event(), s)) for s in (1.0, 2.0))
    await settle()
    assert not early.done()
    await clock.advance(1.0)
    await settle()
    assert (early.done(), late.done(), clock.now_s()) == (True, False, 1.0)
    assert early.result() is False
    await clock.advance(5.0)
    assert await late is False


async def test_the_event_comes_first() -> None:
    """True as soon as the event is set, with no time passing."""
    for clock in (ManualClock(), MonotonicClock()):
        event = asyncio.Event()
        waiter = asyncio.ensure_future(clock.wait_for(event, clock.now_s() + 1000))
        await settle()
        event.set()
        assert await waiter is True
        assert await clock.wait_for(event, clock.now_s() + 1000) is True


async def test_a_deadline_that_has_passed_does_not_wait() -> None:
    """Not even for a moment, and an event that is set wins."""
    for clock in (ManualClock(), MonotonicClock()):
        event = asyncio.Event()
        assert await clock.wait_for(event, clock.now_s() - 1) is False
        event.set()
        assert await clock.wait_for(event, clock.now_s() - 1) is True


async def test_a_cancelled_wait_leaves_nothing_behind() -> None:
    """No task of the clock's own outlives it."""
    before = asyncio.all_tasks()
    for clock in (ManualClock(), MonotonicClock()):
        waiter = asyncio.ensure_future(clock.wait_for(asyncio.Event(), clock.now_s() + 1000))
        await settle()
        waiter.cancel()
        await asyncio.gather(waiter, return_exceptions=True)
    await settle()
    assert asyncio.all_tasks() == before


async def test_the_machine_s_clock_does_not_go_back() -> None:
    """Monotonic, and a wait ends no earlier than its deadline."""
    clock = MonotonicClock()
    deadline_s = clock.now_s() + 0.01
    assert await clock.wait_for(asyncio.Event(), deadline_s) is False
    assert clock.now_s() >= deadline_s
