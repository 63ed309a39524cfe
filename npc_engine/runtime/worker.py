"""The thread that the model runs in, so that the event loop never waits for it."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from npc_engine.errors import EngineClosedError, NpcEngineError
from npc_engine.inference import InferenceEngine, Output

T = TypeVar("T")
Command = Callable[[InferenceEngine], None]

_MAX_COMMANDS = 4096  # far more than one tick posts; past it something is stuck


class ModelWorker:
    """Owns the inference engine and its thread.

    Commands are run between two steps of the engine, in order; what its steps return is handed to `on_outputs` on the
    event loop. An exception inside a step ends the worker: `on_failure` is called once, and every later call raises.
    """

    def __init__(
        self,
        create: Callable[[], InferenceEngine],
        *,
        on_outputs: Callable[[Sequence[Output]], None],
        on_failure: Callable[[NpcEngineError], None],
    ) -> None:
        self._create = create
        self._on_outputs = on_outputs
        self._on_failure = on_failure
        self._commands: queue.Queue[Command | None] = queue.Queue(_MAX_COMMANDS)
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="npc-engine-model", daemon=True)
        self._ended = asyncio.Event()
        self._closing = threading.Event()
        self._started: asyncio.Future[None] = self._loop.create_future()
        self._error: NpcEngineError | None = None

    async def start(self) -> None:
        """Start the thread and create the engine in it; raises what that raised."""
        self._thread.start()
        await self._started

    async def close(self) -> None:
        """Let the current step end, then stop. Idempotent."""
        if self._error is None:
            self._error = EngineClosedError("the engine is closed")
        if self._thread.is_alive():
            self._closing.set()
            with contextlib.suppress(queue.Full):  # then it is awake, and sees that we close
                self._commands.put_nowait(None)
            await self._ended.wait()
            await asyncio.to_thread(self._thread.join)

    def post(self, command: Command) -> None:
        """Run `command` on the model's thread before its next step. Does not wait."""
        if self._error is not None:
            raise self._error
        try:
            self._commands.put_nowait(command)
        except queue.Full:
            raise NpcEngineError(f"{_MAX_COMMANDS} commands wait for the model; it is stuck, or far too slow") from None

    async def call(self, function: Callable[[InferenceEngine], T]) -> T:
        """Run `function` on the model's thread between two steps; returns its result or raises what it raised."""
        future: asyncio.Future[T] = self._loop.create_future()

        def command(engine: InferenceEngine) -> None:
            try:
                result = function(engine)
            except Exception as error:
                self._loop.call_soon_threadsafe(_set_exception, future, error)
            else:
                self._loop.call_soon_threadsafe(_set_result, future, result)

        self.post(command)
        ended = asyncio.create_task(self._ended.wait())
        waited: list[asyncio.Future[Any]] = [future, ended]
        try:
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
        if not future.done():
            assert self._error is not None
            raise self._error
        return future.result()

    # ── on the model's thread ────────────────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        try:
            try:
                engine = self._create()
            except Exception as error:
                self._notify(self._fail_to_start, error)
                return
            self._notify(_set_result, self._started, None)
            try:
                try:
                    self._serve(engine)
                finally:
                    engine.close()
            except Exception as error:
                self._notify(self._fail, error)
        finally:
            self._notify(self._ended.set)

    def _serve(self, engine: InferenceEngine) -> None:
        while not self._closing.is_set():
            wait = not engine.has_work
            while True:
                try:
                    command = self._commands.get(block=wait)
                except queue.Empty:
                    break
                if command is None:
                    return
                command(engine)
                wait = False
            if outputs := engine.step():
                self._notify(self._on_outputs, outputs)

    def _notify(self, function: Callable[..., object], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:  # the event loop was closed under us: nobody is left to tell
            return

    # ── on the event loop ────────────────────────────────────────────────────────────────────────────────────

    def _fail_to_start(self, error: Exception) -> None:
        self._error = EngineClosedError("the engine did not start")
        _set_exception(self._started, error)

    def _fail(self, error: Exception) -> None:
        failure = NpcEngineError(f"the model's thread failed: {type(error).__name__}: {error}")
        failure.__cause__ = error
        self._error = self._error or failure
        self._on_failure(failure)


def _set_result(future: asyncio.Future[T], result: T) -> None:
    if not future.done():
        future.set_result(result)


def _set_exception(future: asyncio.Future[T], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
