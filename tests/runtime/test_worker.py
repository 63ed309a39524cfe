"""The thread of the model: commands in order, failures told, nothing left behind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, cast

import pytest

from npc_engine.errors import EngineClosedError, NpcEngineError
from npc_engine.inference import InferenceEngine
from npc_engine.runtime.worker import ModelWorker


class Scripted:
    """Stands in for the inference engine: `work` is what each step does."""

    def __init__(self) -> None:
        self.work: list[Callable[[], list[Any]]] = []
        self.num_closed = 0
        self.log: list[str] = []
        self.threads: set[int] = set()

    @property
    def has_work(self) -> bool:
        return bool(self.work)

    def step(self) -> list[Any]:
        self.threads.add(threading.get_ident())
        return self.work.pop(0)() if self.work else []

    def close(self) -> None:
        self.threads.add(threading.get_ident())
        self.num_closed += 1


class Hosted:
    """A worker around a scripted engine, and what it reported on the event loop."""

    def __init__(self) -> None:
        self.engine = Scripted()
        self.outputs: list[Any] = []
        self.failures: list[NpcEngineError] = []
        self.told = asyncio.Event()
        self.worker = ModelWorker(self.create, on_outputs=self.on_outputs, on_failure=self.on_failure)

    def create(self) -> InferenceEngine:
        return cast(InferenceEngine, self.engine)

    def on_outputs(self, outputs: Any) -> None:
        assert threading.current_thread() is threading.main_thread()
        self.outputs += outputs
        self.told.set()

    def on_failure(self, error: NpcEngineError) -> None:
        assert threading.current_thread() is threading.main_thread()
        self.failures.append(error)
        self.told.set()


async def soon(awaitable: Any) -> Any:
    return await asyncio.wait_for(awaitable, 10)


def fail(message: str) -> Callable[..., Any]:
    def raising(*_: object) -> Any:
        raise RuntimeError(message)

    return raising


async def test_commands_and_steps_run_on_the_worker_s_thread_in_order() -> None:
    """Never on the event loop's."""
    hosted = Hosted()
    await soon(hosted.worker.start())
    order: list[int] = []
    for i in range(5):
        hosted.worker.post(lambda engine, i=i: order.append(i))
    ident = await soon(hosted.worker.call(lambda engine: threading.get_ident()))
    assert order == [0, 1, 2, 3, 4]
    hosted.worker.post(lambda engine: engine.work.extend([lambda: ["a"], list, lambda: ["b"]]))  # type: ignore[attr-defined]
    while len(hosted.outputs) < 2:
        await soon(hosted.told.wait())
        hosted.told.clear()
    assert hosted.outputs == ["a", "b"]
    await soon(hosted.worker.close())
    assert hosted.engine.threads == {ident}
    assert ident != threading.get_ident()


async def test_a_command_gets_in_between_two_steps() -> None:
    """However much work there is."""
    hosted = Hosted()
    await soon(hosted.worker.start())
    first, go_on = threading.Event(), threading.Event()

    def wait() -> list[Any]:
        first.set()
        assert go_on.wait(10)
        return ["first"]

    hosted.worker.post(lambda engine: engine.work.extend([wait, lambda: ["second"]]))  # type: ignore[attr-defined]
    await asyncio.to_thread(first.wait, 10)
    call = asyncio.ensure_future(hosted.worker.call(lambda engine: len(engine.work)))  # type: ignore[attr-defined]
    await asyncio.sleep(0)
    assert not call.done()
    go_on.set()
    assert await soon(call) == 1
    await soon(hosted.worker.close())


async def test_a_call_raises_what_its_function_raised_and_the_worker_goes_on() -> None:
    """A caller's mistake is the caller's alone."""
    hosted = Hosted()
    await soon(hosted.worker.start())
    with pytest.raises(RuntimeError, match="mistake"):
        await soon(hosted.worker.call(fail("mistake")))
    assert await soon(hosted.worker.call(lambda engine: 5)) == 5
    assert hosted.failures == []
    await soon(hosted.worker.close())


@pytest.mark.parametrize("where", ["step", "posted command"])
async def test_a_failure_is_told_once_and_ends_the_worker(where: str) -> None:
    """The engine is closed; later calls raise the failure, with its cause."""
    hosted = Hosted()
    await soon(hosted.worker.start())
    if where == "step":
        hosted.worker.post(lambda engine: engine.work.append(fail("broken")))  # type: ignore[attr-defined]
    else:
        hosted.worker.post(fail("broken"))
    await soon(hosted.told.wait())
    (failure,) = hosted.failures
    assert "broken" in str(failure)
    assert isinstance(failure.__cause__, RuntimeError)
    with pytest.raises(NpcEngineError, match="broken"):
        await soon(hosted.worker.call(lambda engine: 1))
    with pytest.raises(NpcEngineError, match="broken"):
        hosted.worker.post(lambda engine: None)
    await soon(hosted.worker.close())
    await soon(hosted.worker.close())
    assert hosted.engine.num_closed == 1
    assert len(hosted.failures) == 1


async def test_calls_that_wait_when_the_model_breaks_are_told() -> None:
    """Nobody waits for a dead thread."""
    hosted = Hosted()
    await soon(hosted.worker.start())
    entered, go_on = threading.Event(), threading.Event()

    def breaking() -> list[Any]:
        entered.set()
        assert go_on.wait(10)
        raise RuntimeError("broken")

    hosted.worker.post(lambda engine: engine.work.append(breaking))  # type: ignore[attr-defined]
    await asyncio.to_thread(entered.wait, 10)
    waiting = [asyncio.ensure_future(hosted.worker.call(lambda engine: 1)) for _ in range(3)]
    await asyncio.sleep(0)
    go_on.set()
    results = await soon(asyncio.gather(*waiting, return_exceptions=True))
    assert [str(result) for result in results] == [str(hosted.failures[0])] * 3
    await soon(hosted.worker.close())


async def test_close_ends_the_thread_and_may_be_called_again() -> None:
    """Twice at once, too. Who waits is told; afterwards everything raises EngineClosedError."""
    hosted = Hosted()
    await soon(hosted.worker.start())
    go_on = threading.Event()
    hosted.worker.post(lambda engine: cast(None, go_on.wait(10)))
    waiting = asyncio.ensure_future(hosted.worker.call(lambda engine: 1))
    await asyncio.sleep(0)
    closing = asyncio.gather(hosted.worker.close(), hosted.worker.close())
    await asyncio.sleep(0)  # both have begun
    go_on.set()
    await soon(closing)
    await soon(hosted.worker.close())
    assert hosted.engine.num_closed == 1
    assert not hosted.worker._thread.is_alive()
    (ended,) = await soon(asyncio.gather(waiting, return_exceptions=True))
    assert ended == 1 or isinstance(ended, EngineClosedError), "a call that waited ends, done or refused"
    with pytest.raises(EngineClosedError):
        await hosted.worker.call(lambda engine: 1)
    with pytest.raises(EngineClosedError):
        hosted.worker.post(lambda engine: None)


async def test_close_before_start() -> None:
    """There is nothing to end."""
    await soon(Hosted().worker.close())


async def test_an_engine_that_can_not_be_created() -> None:
    """`start` raises the error itself; close has nothing to end."""
    hosted = Hosted()
    worker = ModelWorker(fail("no memory"), on_outputs=hosted.on_outputs, on_failure=hosted.on_failure)
    with pytest.raises(RuntimeError, match="no memory"):
        await soon(worker.start())
    await soon(worker.close())
    assert hosted.failures == []


async def test_calls_after_a_failed_start_say_so() -> None:
    """An NpcEngineError, not an assertion of ours."""
    hosted = Hosted()
    worker = ModelWorker(fail("no memory"), on_outputs=hosted.on_outputs, on_failure=hosted.on_failure)
    with pytest.raises(RuntimeError):
        await soon(worker.start())
    with pytest.raises(NpcEngineError):
        await soon(worker.call(lambda engine: 1))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_an_engine_that_fails_to_close_is_told_of() -> None:
    """Not everything was written: `on_failure` hears of it."""
    hosted = Hosted()
    await soon(hosted.worker.start())
    hosted.engine.close = fail("disk full")  # type: ignore[method-assign]
    await soon(hosted.worker.close())
    assert [str(failure) for failure in hosted.failures] != []


def flood(worker: ModelWorker) -> None:
    for _ in range(5000):
        worker.post(lambda engine: None)


async def test_a_full_queue_does_not_keep_the_worker_from_closing() -> None:
    """4,096 commands behind a long step."""
    hosted = Hosted()
    await soon(hosted.worker.start())
    go_on = threading.Event()
    hosted.worker.post(lambda engine: cast(None, go_on.wait(10)))
    try:
        with pytest.raises(NpcEngineError, match="4096"):
            flood(hosted.worker)
    finally:
        go_on.set()
        await soon(hosted.worker.close())
