"""An event loop beside a terminal.

Reading a line blocks, and only the main thread may be interrupted by Ctrl-C; so the terminal keeps the main thread, and
the engine's event loop gets one of its own.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from types import TracebackType
from typing import Any, Final, Self, TypeVar

T = TypeVar("T")

_POLL_S: Final = 0.1  # a wait without a limit can't be interrupted on Windows


class LoopThread:
    """::

    with LoopThread() as loop:
        reply = loop.run(talk.say("wick", "Hello!"), on_interrupt=talk.cancel)
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="npc-engine-loop", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def run(self, coroutine: Coroutine[Any, Any, T], on_interrupt: Callable[[], None] | None = None) -> T:
        """Run a coroutine on the loop and wait for its result.

        The first Ctrl-C calls `on_interrupt` on the loop, and the wait goes on; without it, and at the second, the
        coroutine is cancelled and KeyboardInterrupt raised.
        """
        future: concurrent.futures.Future[T] | None = None
        while True:
            try:
                if future is None:
                    with _deferred_interrupt():  # or a Ctrl-C could fall between the start and the wait
                        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
                return future.result(timeout=_POLL_S)
            except TimeoutError:
                if future is not None and future.done():  # the coroutine's own
                    raise
            except KeyboardInterrupt:
                assert future is not None
                if on_interrupt is None:
                    future.cancel()
                    raise
                self._loop.call_soon_threadsafe(on_interrupt)
                on_interrupt = None

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            tasks = asyncio.all_tasks(self._loop)
            for task in tasks:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()


@contextlib.contextmanager
def _deferred_interrupt() -> Iterator[None]:
    """Let a Ctrl-C that comes inside be raised at the end. On the main thread."""
    came = False

    def remember(*_: object) -> None:
        nonlocal came
        came = True

    previous = signal.signal(signal.SIGINT, remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if came:
        raise KeyboardInterrupt
