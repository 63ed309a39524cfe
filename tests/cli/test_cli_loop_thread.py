"""The event loop beside a terminal."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from npc_engine.cli.loop_thread import LoopThread


def test_results_and_errors_come_back() -> None:
    """Also a TimeoutError that is the coroutine's own."""

    async def fail() -> None:
        raise TimeoutError("mine")

    with LoopThread() as loop:
        assert loop.run(asyncio.sleep(0, "done")) == "done"
        with pytest.raises(TimeoutError, match="mine"):
            loop.run(fail())


def test_the_first_interrupt_is_for_the_one_who_speaks() -> None:
    """Ctrl-C calls `on_interrupt`, and the result still comes."""
    cancelled = asyncio.Event()

    async def speak() -> str:
        os.kill(os.getpid(), signal.SIGINT)
        await cancelled.wait()
        return "so far"

    with LoopThread() as loop:
        assert loop.run(speak(), on_interrupt=cancelled.set) == "so far"


def test_the_second_interrupt_leaves() -> None:
    """When what was interrupted does not end, the next Ctrl-C is KeyboardInterrupt."""

    async def speak() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.Event().wait()

    with LoopThread() as loop, pytest.raises(KeyboardInterrupt):
        loop.run(speak(), on_interrupt=lambda: os.kill(os.getpid(), signal.SIGINT))


def test_leaving_cancels_what_still_runs() -> None:
    """No task outlives the thread."""
    ended = []

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    async def start() -> asyncio.Task[None]:
        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        return task

    with LoopThread() as loop:
        task = loop.run(start())
    assert ended == [True]
    assert task.cancelled()
