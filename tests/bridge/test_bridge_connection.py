"""One connection between a socket without a network and a scripted engine: order, bounds, and no task left behind."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from bridge_doubles import FakeSocket, ScriptedEngine

from game_bridge import messages
from game_bridge.codec import CODECS
from game_bridge.connection import Connection
from game_bridge.limits import Limits
from game_bridge.protocol import Phase
from npc_engine.config import SamplingParams
from npc_engine.errors import NpcEngineError

HELLO = {"type": "hello", "id": 1, "version": 1, "player": "ana"}


def connection(socket: FakeSocket, engine: ScriptedEngine, limits: Limits | None = None) -> Connection:
    return Connection(
        socket,
        engine,
        CODECS["npc.v1.json"],
        session_id="s1",
        limits=limits or Limits(),
        token=None,
        sampling=SamplingParams(temperature=0.25),
        now_s=lambda: 0.0,
    )


def push(socket: FakeSocket, *sent: dict[str, Any]) -> None:
    socket.push(*(json.dumps(message) for message in sent))


@asynccontextmanager
async def serving(target: Connection, socket: FakeSocket) -> AsyncIterator[asyncio.Task[None]]:
    """Run a connection; afterwards the client hangs up, and nothing may be left running."""
    before = asyncio.all_tasks()
    task = asyncio.create_task(target.run())
    yield task
    socket.hang_up()
    await task
    assert asyncio.all_tasks() == before
    assert target.phase is Phase.CLOSED


async def test_the_welcome_describes_the_engine_and_comes_first() -> None:
    """Even when the client does not wait for it before it asks."""
    socket, engine = FakeSocket(), ScriptedEngine()
    async with serving(connection(socket, engine), socket):
        push(socket, HELLO, {"type": "ping", "id": 2}, {"type": "list_npcs", "id": 3})
        welcome = await socket.message()
        assert isinstance(welcome, messages.Welcome)
        assert (welcome.id, welcome.version, welcome.session, welcome.tick) == (1, 1, "s1", 7)
        assert welcome.world == messages.WorldCard(id="harbour", title="The Harbour")
        assert welcome.model.fingerprint == "abc123"
        assert [npc.id for npc in welcome.npcs] == ["mira", "tom"]
        assert welcome.limits.max_utterances == Limits().max_utterances
        assert await socket.message() == messages.Pong(id=2)
        assert await socket.message() == messages.Npcs(id=3, npcs=welcome.npcs)


async def test_a_reply_is_streamed_in_order() -> None:
    """Start, deltas numbered from 0, then the end with everything the engine knows of it."""
    socket, engine = FakeSocket(), ScriptedEngine()
    async with serving(connection(socket, engine), socket):
        push(socket, HELLO, {"type": "say", "id": 2, "npc": "mira", "text": "hi", "sampling": {"max_tokens": 5}})
        await socket.message()
        assert await socket.message() == messages.ReplyStart(id=2, npc="mira")
        pieces = [("Good ", False), ("evening.", True), (" Sit.", True)]
        for seq, (text, ends) in enumerate(pieces):
            assert await socket.message() == messages.ReplyDelta(id=2, seq=seq, text=text, ends_sentence=ends)
        end = await socket.message()
        assert isinstance(end, messages.ReplyEnd)
        assert (end.id, end.npc, end.speech, end.finish_reason) == (2, "mira", "Good evening. Sit.", "stop")
        assert end.emotion == "calm"
        assert end.actions == (messages.ActionCard(name="pour", arguments={"drink": "ale", "cups": 2}),)
        assert end.stats.ttft_ms == 4.5
        assert engine.calls == [("say", "mira", "hi", "ana")]
        assert engine.sampling == [SamplingParams(temperature=0.25, max_tokens=5)]


async def test_the_engine_is_called_in_the_order_of_arrival() -> None:
    """A say behind two changes is put to the engine behind them, and does not wait until they are answered."""
    socket, engine = FakeSocket(), ScriptedEngine()
    engine.patch_gate.clear()
    operation = {"op": "replace", "path": "/mira/place", "value": "quay"}
    async with serving(connection(socket, engine), socket):
        push(
            socket,
            HELLO,
            {"type": "patch", "id": 2, "operations": [operation]},
            {"type": "patch", "id": 3, "operations": [{**operation, "path": "/tom/place"}]},
            {"type": "say", "id": 4, "npc": "tom", "text": "hi"},
        )
        stream = await engine.started.get()
        assert [call[0] for call in engine.calls] == ["patch", "patch", "say"]
        assert engine.calls[0][1] == [operation]
        engine.patch_gate.set()
        received = [await socket.message() for _ in range(6)]
        answers = [message for message in received if isinstance(message, messages.Changed)]
        assert answers == [
            messages.Changed(id=2, tick=8, entities=("mira",), num_changed_blocks=1),
            messages.Changed(id=3, tick=9, entities=("tom",), num_changed_blocks=1),
        ]
        assert [m.tick for m in received if isinstance(m, messages.WorldChanged)] == [8, 9]
        engine.end(stream)


@pytest.mark.parametrize(
    ("request_", "code", "says"),
    [
        ({"type": "say", "id": 2, "npc": "bob", "text": "hi"}, "unknown_name", "no NPC 'bob'; there are mira, tom"),
        ({"type": "say", "id": 2, "npc": "mira", "text": " "}, "bad_utterance", "empty"),
        ({"type": "patch", "id": 2, "operations": [{"op": "jump"}]}, "bad_patch", "jump"),
    ],
)
async def test_a_users_mistake_is_answered_and_the_session_goes_on(
    request_: dict[str, Any], code: str, says: str
) -> None:
    """The engine's own line reaches the client, with a code a program can act on."""
    socket, engine = FakeSocket(), ScriptedEngine()
    async with serving(connection(socket, engine), socket):
        push(socket, HELLO, request_)
        await socket.message()
        refusal = await socket.message()
        assert isinstance(refusal, messages.Error)
        assert (refusal.id, refusal.code) == (2, code)
        assert says in refusal.message
        push(socket, {"type": "ping", "id": 2})  # the id is free again
        assert await socket.message() == messages.Pong(id=2)


async def test_a_reply_that_fails_in_the_middle_ends_with_an_error() -> None:
    """What was said before still arrives."""
    socket, engine = FakeSocket(), ScriptedEngine()
    async with serving(connection(socket, engine), socket):
        push(socket, HELLO, {"type": "say", "id": 2, "npc": "tom", "text": "hi"})
        stream = await engine.started.get()
        engine.speak(stream, "Well ")
        engine.end(stream, NpcEngineError("4097 tokens, the model has 4096"))
        received = [await socket.message() for _ in range(4)]
        assert received[2] == messages.ReplyDelta(id=2, seq=0, text="Well ", ends_sentence=False)
        assert received[3] == messages.Error(id=2, code="engine_failed", message="4097 tokens, the model has 4096")
        assert engine.cancelled.empty()


async def test_a_cancel_in_mid_reply_ends_it() -> None:
    """The end says what was spoken so far."""
    socket, engine = FakeSocket(), ScriptedEngine()
    async with serving(connection(socket, engine), socket):
        push(socket, HELLO, {"type": "say", "id": 2, "npc": "tom", "text": "hi"})
        stream = await engine.started.get()
        engine.speak(stream, "Well ")
        for _ in range(3):
            await socket.message()
        push(socket, {"type": "cancel", "id": 2}, {"type": "cancel", "id": 2}, {"type": "cancel", "id": 99})
        end = await socket.message()
        assert isinstance(end, messages.ReplyEnd)
        assert (end.speech, end.finish_reason) == ("Well ", "cancelled")
        assert await engine.cancelled.get() == "tom"


async def test_a_cancel_in_the_same_breath_as_its_say_is_not_lost() -> None:
    """Both frames are there before the reply's task took its first step."""
    socket, engine = FakeSocket(), ScriptedEngine()
    async with serving(connection(socket, engine), socket):
        push(socket, HELLO, {"type": "say", "id": 2, "npc": "tom", "text": "hi"}, {"type": "cancel", "id": 2})
        assert await engine.cancelled.get() == "tom"


async def test_a_client_that_goes_cancels_its_replies() -> None:
    """Two replies in the middle, a patch that waits for its tick, a subscription: all gone when run() returns."""
    socket, engine = FakeSocket(), ScriptedEngine(script={})
    engine.patch_gate.clear()
    async with serving(connection(socket, engine), socket) as task:
        operations = [{"op": "replace", "path": "/mira", "value": 1}]
        push(
            socket,
            HELLO,
            {"type": "say", "id": 2, "npc": "tom", "text": "hi"},
            {"type": "say", "id": 3, "npc": "mira", "text": "hi"},
            {"type": "patch", "id": 4, "operations": operations},
        )
        engine.speak(await engine.started.get(), "Well ")
        await engine.started.get()
        assert engine.num_subscribers == 1
        socket.hang_up()
        await task
        assert sorted([engine.cancelled.get_nowait(), engine.cancelled.get_nowait()]) == ["mira", "tom"]
        assert engine.num_subscribers == 0


async def test_a_slow_reader_fills_a_bounded_outbox_and_loses_nothing() -> None:
    """The reply waits in its stream, not in our memory; when the client reads on, every delta arrives in order."""
    words = [f"{i} " for i in range(200)]
    socket, engine = FakeSocket(takes=2), ScriptedEngine({"mira": words})
    target = connection(socket, engine, Limits(max_outbox=4))
    async with serving(target, socket):
        push(socket, HELLO, {"type": "say", "id": 2, "npc": "mira", "text": "hi"})
        await socket.full.wait()
        for _ in range(10):
            await asyncio.sleep(0)  # let the reply push as much as it can
        assert target.num_queued == 4
        assert socket.sent.qsize() == 2
        socket.read_on(1000)
        received = [await socket.message() for _ in range(203)]
        deltas = [message for message in received if isinstance(message, messages.ReplyDelta)]
        assert [delta.seq for delta in deltas] == list(range(200))
        assert "".join(delta.text for delta in deltas) == "".join(words)
        assert isinstance(received[-1], messages.ReplyEnd)


async def test_a_client_that_goes_while_the_outbox_is_full_leaves_nothing() -> None:
    """Reader, reply and broadcast all wait for room that never comes."""
    socket, engine = FakeSocket(takes=1), ScriptedEngine({"mira": ["a"] * 50})
    async with serving(connection(socket, engine, Limits(max_outbox=1)), socket) as task:
        push(socket, HELLO, {"type": "say", "id": 2, "npc": "mira", "text": "hi"})
        push(socket, *({"type": "ping", "id": i} for i in range(3, 9)))
        await engine.advance(5)
        await socket.full.wait()
        socket.hang_up()
        await task


async def test_a_client_that_takes_nothing_is_cut_off() -> None:
    """A timeout of 0 stands for one that has passed."""
    socket, engine = FakeSocket(takes=0), ScriptedEngine()
    async with serving(connection(socket, engine, Limits(send_timeout_s=0)), socket) as task:
        push(socket, HELLO)
        await task
        assert socket.aborted


async def test_no_hello_in_time() -> None:
    """The close says so."""
    socket = FakeSocket()
    async with serving(connection(socket, ScriptedEngine(), Limits(hello_timeout_s=0)), socket) as task:
        await task
        assert socket.closed_with == (4004, "no hello within 0 s")


async def test_a_refusal_is_sent_before_the_close() -> None:
    """The error that explains it is not lost."""
    socket, engine = FakeSocket(), ScriptedEngine()
    async with serving(connection(socket, engine), socket) as task:
        push(socket, {"type": "hello", "id": 1, "version": 9})
        await task
        refusal = await socket.message()
        assert isinstance(refusal, messages.Error)
        assert refusal.code == "bad_version"
        assert socket.closed_with == (4002, refusal.message)
        assert engine.num_subscribers == 0


async def test_closing_does_not_wait_for_a_client_that_hangs() -> None:
    """The closing handshake is tried, then the transport dropped; a second close does nothing new."""
    socket, engine = FakeSocket(), ScriptedEngine(script={})
    socket.hangs_on_close = True
    target = connection(socket, engine, Limits(close_timeout_s=0))
    async with serving(target, socket) as task:
        push(socket, HELLO, {"type": "say", "id": 2, "npc": "tom", "text": "hi"})
        await engine.started.get()
        await target.close(1001, "bye")
        await target.close(1001, "bye")
        await task
        assert socket.aborted
        assert engine.cancelled.get_nowait() == "tom"


async def test_a_closed_engine_closes_the_connection() -> None:
    """It says so instead of leaving the client without a welcome."""
    socket, engine = FakeSocket(), ScriptedEngine()
    engine.closed = True
    async with serving(connection(socket, engine), socket) as task:
        push(socket, HELLO)
        await task
        assert socket.closed_with == (1001, "the engine is closed")


async def test_a_bug_ends_the_connection_loudly(caplog: pytest.LogCaptureFixture) -> None:
    """Logged with its traceback, closed with 1011, the reason without internals; other replies are cancelled."""
    socket, engine = FakeSocket(), ScriptedEngine(script={})
    async with serving(connection(socket, engine), socket) as task:
        push(socket, HELLO, {"type": "say", "id": 2, "npc": "tom", "text": "hi"})
        await engine.started.get()
        engine.npcs = None  # type: ignore[assignment,method-assign]
        with caplog.at_level(logging.ERROR):
            push(socket, {"type": "list_npcs", "id": 3})
            await task
        assert socket.closed_with == (1011, "internal error")
        assert "connection s1 failed" in caplog.text
        assert engine.cancelled.get_nowait() == "tom"
