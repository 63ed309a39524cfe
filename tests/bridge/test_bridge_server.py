"""Server and reference client over a real socket on this machine, with a scripted engine."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from bridge_doubles import ScriptedEngine
from websockets.asyncio.client import connect as open_websocket
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from game_bridge import (
    BridgeServer,
    ConnectError,
    ConnectionLostError,
    Limits,
    ListenError,
    RequestError,
    connect,
    messages,
)
from game_bridge.codec import CODECS
from npc_engine.config import SamplingParams
from npc_engine.errors import UserError

both_subprotocols = pytest.mark.parametrize("subprotocol", list(CODECS))


@asynccontextmanager
async def serving(engine: ScriptedEngine, **options: Any) -> AsyncIterator[BridgeServer]:
    """A server on a free port. Afterwards no task of it may be left, nor a subscription."""
    before = asyncio.all_tasks()
    async with BridgeServer(engine, port=0, **options) as server:
        yield server
    assert asyncio.all_tasks() == before
    assert engine.num_subscribers == 0
    assert server.num_connections == 0


@both_subprotocols
async def test_a_session_end_to_end(subprotocol: str) -> None:
    """List, talk, change the world, let time pass: what a game does, in both encodings."""
    engine = ScriptedEngine()
    async with serving(engine) as server, connect(server.url, player="Ana", subprotocol=subprotocol) as bridge:
        assert bridge.welcome.world.title == "The Harbour"
        assert bridge.welcome.model.name == "scripted"
        assert [(npc.id, npc.place) for npc in bridge.npcs] == [("mira", "inn"), ("tom", "quay")]
        assert await bridge.list_npcs() == bridge.npcs

        speech = bridge.say("mira", "Who was here? \U0001f37a")
        assert [delta.text async for delta in speech] == ["Good ", "evening.", " Sit."]
        reply = await speech.result()
        assert (reply.speech, reply.emotion, reply.finish_reason) == ("Good evening. Sit.", "calm", "stop")
        assert reply.actions[0].arguments == {"drink": "ale", "cups": 2}
        assert reply.stats.num_cached_tokens == 880
        assert engine.calls[-1] == ("say", "mira", "Who was here? \U0001f37a", "Ana")

        change = await bridge.patch([{"op": "replace", "path": "/mira/place", "value": "quay"}])
        assert (change.tick, change.entities, change.num_changed_blocks) == (8, ("mira",), 1)
        assert (await bridge.advance(60)).tick == 9
        await bridge.ping()
        changes = bridge.world_changes()
        assert (await anext(changes)).tick == 9  # both, merged: they were there before anybody read


async def test_the_whole_reply_without_reading_the_stream() -> None:
    """`result()` alone is enough, with sampling as the engine's type or as overrides."""
    engine = ScriptedEngine()
    sampling = SamplingParams(temperature=0.5, seed=3)
    async with serving(engine) as server, connect(server.url) as bridge:
        assert (await bridge.say("mira", "hi", sampling=sampling).result()).speech == "Good evening. Sit."
        assert engine.sampling == [sampling]


@both_subprotocols
async def test_two_replies_at_once_do_not_mix(subprotocol: str) -> None:
    """Each delta goes to the say whose id it carries."""
    engine = ScriptedEngine(script={})
    async with serving(engine) as server, connect(server.url, subprotocol=subprotocol) as bridge:
        first, second = bridge.say("mira", "hi"), bridge.say("tom", "hi")
        to_mira, to_tom = await engine.started.get(), await engine.started.get()
        for piece in ("a", "b", "c"):
            engine.speak(to_tom, piece.upper())
            engine.speak(to_mira, piece)
        engine.end(to_tom)
        engine.end(to_mira)
        assert "".join([delta.text async for delta in first]) == "abc"
        assert "".join([delta.text async for delta in second]) == "ABC"


async def test_the_client_refuses_what_a_server_would() -> None:
    """One line that names the field; nothing is sent, and the session goes on."""
    async with serving(ScriptedEngine()) as server, connect(server.url) as bridge:
        with pytest.raises(RequestError, match=r"^patch: operations: List should have at least 1 item"):
            await bridge.patch([])
        with pytest.raises(RequestError, match=r"^advance: minutes: Input should be greater than or equal to 1"):
            await bridge.advance(0)
        with pytest.raises(RequestError, match=r"^say: sampling: temperature"):
            bridge.say("mira", "hi", sampling=SamplingParams(temperature=6))
        await bridge.ping()


async def test_cancel_in_mid_reply() -> None:
    """The stream ends, the result says what was spoken so far, and the session goes on."""
    engine = ScriptedEngine(script={})
    async with serving(engine) as server, connect(server.url) as bridge:
        speech = bridge.say("tom", "hi")
        engine.speak(await engine.started.get(), "Well ")
        heard = []
        async for delta in speech:
            heard.append(delta.text)
            speech.cancel()
        assert heard == ["Well "]
        reply = await speech.result()
        assert (reply.speech, reply.finish_reason) == ("Well ", "cancelled")
        speech.cancel()  # too late: nothing happens
        await bridge.ping()


async def test_a_disconnect_in_mid_reply_cancels_it() -> None:
    """The engine does not go on speaking to nobody; `serving` checks that no task is left."""
    engine = ScriptedEngine(script={})
    async with serving(engine) as server:
        async with connect(server.url) as bridge:
            speech = bridge.say("tom", "hi")
            engine.speak(await engine.started.get(), "Well ")
        assert await engine.cancelled.get() == "tom"
        with pytest.raises(ConnectionLostError):
            await speech.result()
        with pytest.raises(ConnectionLostError):
            bridge.say("tom", "still there?")


async def test_a_vanished_client_cancels_its_reply() -> None:
    """The same when the transport breaks without a closing handshake."""
    engine = ScriptedEngine(script={})
    async with serving(engine) as server:
        websocket = await open_websocket(server.url, subprotocols=[Subprotocol("npc.v1.json")], proxy=None)
        await websocket.send('{"type":"hello","id":1,"version":1}')
        await websocket.send('{"type":"say","id":2,"npc":"tom","text":"hi"}')
        await engine.started.get()
        websocket.transport.abort()
        assert await engine.cancelled.get() == "tom"


async def test_server_errors_raise_and_the_session_goes_on() -> None:
    """Unknown NPC, empty utterance, patch that does not apply: one typed exception with the server's line."""
    engine = ScriptedEngine()
    async with serving(engine) as server, connect(server.url) as bridge:
        with pytest.raises(RequestError, match="no NPC 'bob'; there are mira, tom") as caught:
            await bridge.say("bob", "hi").result()
        assert caught.value.code == "unknown_name"
        assert isinstance(caught.value, UserError)
        with pytest.raises(RequestError, match="empty") as caught:
            async for _ in bridge.say("mira", " "):
                pass
        assert caught.value.code == "bad_utterance"
        with pytest.raises(RequestError, match="does not apply") as caught:
            await bridge.patch([{"op": "replace", "path": "nowhere", "value": 1}])
        assert caught.value.code == "bad_patch"
        with pytest.raises(RequestError, match="minutes"):
            await bridge.advance(0)
        with pytest.raises(RequestError, match=r"^say: sampling: temperature"):
            bridge.say("mira", "hi", sampling=SamplingParams(temperature=6))
        await bridge.ping()


async def test_everybody_hears_of_a_change() -> None:
    """A change by one client reaches the other, in both encodings at once."""
    engine = ScriptedEngine()
    async with (
        serving(engine) as server,
        connect(server.url, subprotocol="npc.v1.json") as one,
        connect(server.url, subprotocol="npc.v1.msgpack") as other,
    ):
        await one.patch([{"op": "replace", "path": "/tom/place", "value": "inn"}])
        change = await anext(other.world_changes())
        assert (change.tick, change.entities) == (8, ("tom",))


async def test_the_token_is_checked() -> None:
    """Wrong or missing: close code 4003 and a reason; right: welcome."""
    async with serving(ScriptedEngine(), token="open sesame") as server:
        for wrong in (None, "", "open says me"):
            with pytest.raises(ConnectError, match="token") as caught:
                async with connect(server.url, token=wrong):
                    pass
            assert caught.value.close_code == 4003
        async with connect(server.url, token="open sesame") as bridge:
            await bridge.ping()


async def exchange(server: BridgeServer, *frames: str | bytes) -> tuple[list[dict[str, Any]], int | None]:
    """Send frames as JSON client, each after an answer to the one before: what the server said, and its close code."""
    said = []
    async with open_websocket(server.url, subprotocols=[Subprotocol("npc.v1.json")], proxy=None) as websocket:
        try:
            for frame in frames[:-1]:
                await websocket.send(frame)
                said.append(CODECS["npc.v1.json"].decode(await websocket.recv()))
            await websocket.send(frames[-1])
            while True:
                said.append(CODECS["npc.v1.json"].decode(await websocket.recv()))
        except ConnectionClosed as error:
            return said, error.rcvd.code if error.rcvd else None


HELLO = '{"type":"hello","id":1,"version":1}'


@pytest.mark.parametrize(
    ("frame", "code", "close_code"),
    [
        ('{"type":"hello","id":1,"version":2}', "bad_version", 4002),
        ('{"type":"list_npcs","id":1}', "hello_expected", 4001),
        ("open the door", "bad_frame", 4001),
        (b"\x80", "bad_frame", 4001),
    ],
)
async def test_bad_beginnings(frame: str | bytes, code: str, close_code: int) -> None:
    """Wrong version, no hello, garbage, the other kind of frame: an error, then a close code of its own."""
    async with serving(ScriptedEngine()) as server:
        said, closed = await exchange(server, frame)
        assert [message["code"] for message in said] == [code]
        assert closed == close_code


async def test_an_oversize_message_closes_with_1009() -> None:
    """The limit that the welcome told, by one byte."""
    async with serving(ScriptedEngine(), limits=Limits(max_message_bytes=1000)) as server:
        said, closed = await exchange(server, HELLO, "x" * 1001)
        assert said[0]["limits"]["max_message_bytes"] == 1000
        assert closed == 1009


async def test_a_text_frame_on_msgpack_is_an_error_not_the_end() -> None:
    """After the hello a bad frame costs an error; the session goes on."""
    codec = CODECS["npc.v1.msgpack"]
    async with (
        serving(ScriptedEngine()) as server,
        open_websocket(server.url, subprotocols=[Subprotocol("npc.v1.msgpack")], proxy=None) as websocket,
    ):
        await websocket.send(codec.encode(messages.Hello(id=1, version=1)))
        assert codec.decode(await websocket.recv())["type"] == "welcome"
        await websocket.send('{"type":"ping","id":2}')
        assert codec.decode(await websocket.recv())["code"] == "bad_frame"
        await websocket.send(codec.encode(messages.Ping(id=3)))
        assert codec.decode(await websocket.recv()) == {"type": "pong", "id": 3}


async def test_a_client_must_offer_a_subprotocol() -> None:
    """Without one of ours the upgrade is refused."""
    async with serving(ScriptedEngine()) as server:
        with pytest.raises(InvalidStatus, match="400"):
            await open_websocket(server.url, proxy=None)


@pytest.mark.parametrize(("options", "code"), [({}, 1001), ({"code": 1012, "reason": "restarting"}, 1012)])
async def test_closing_tells_clients_why(options: dict[str, Any], code: int) -> None:
    """A reply in the middle is cancelled; the client learns code and reason; closing twice is closing once."""
    engine = ScriptedEngine(script={})
    async with serving(engine) as server, connect(server.url) as bridge:
        forever = asyncio.create_task(server.serve_forever())
        speech = bridge.say("tom", "hi")
        await engine.started.get()
        await server.close(**options)
        await server.close()
        await forever
        assert engine.cancelled.get_nowait() == "tom"
        with pytest.raises(ConnectionLostError, match=options.get("reason", "shutting down")) as caught:
            await speech.result()
        assert caught.value.close_code == code
        assert [change async for change in bridge.world_changes()] == []
        with pytest.raises(ConnectError, match="can't connect"):
            async with connect(server.url):
                pass


async def test_a_taken_port_is_one_clear_line() -> None:
    """It names the port, the address and the option."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ListenError, match=f"^port {port} on 127.0.0.1 is in use: .*--port$") as caught:
            async with BridgeServer(ScriptedEngine(), port=port):
                pass
        assert isinstance(caught.value, UserError)


async def test_an_address_of_another_machine_is_one_clear_line() -> None:
    """It names the options."""
    with pytest.raises(ListenError, match="--host") as caught:
        async with BridgeServer(ScriptedEngine(), host="192.0.2.1", token="x"):
            pass
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("host", ["0.0.0.0", "", "::", "192.168.1.5", "example.org"])
def test_it_listens_publicly_only_with_a_token(host: str) -> None:
    """Every address that is not this machine's own is refused, and the option named."""
    with pytest.raises(ListenError, match="--token-file"):
        BridgeServer(ScriptedEngine(), host=host)
    BridgeServer(ScriptedEngine(), host=host, token="secret")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_it_listens_on_this_machine_without_a_token(host: str) -> None:
    """No account, no set-up."""
    BridgeServer(ScriptedEngine(), host=host)


def test_nonsense_options_are_refused() -> None:
    """An empty token would let everybody in; a port has 16 bits."""
    with pytest.raises(ListenError, match="empty"):
        BridgeServer(ScriptedEngine(), token=" ")
    with pytest.raises(ListenError, match="--port"):
        BridgeServer(ScriptedEngine(), port=65536)


async def test_connecting_to_nothing_is_one_clear_error() -> None:
    """No server, no address, an unknown subprotocol."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(ConnectError, match="can't connect"):
        async with connect(f"ws://127.0.0.1:{port}"):
            pass
    with pytest.raises(ConnectError, match="can't connect"):
        async with connect("http://127.0.0.1"):
            pass
    with pytest.raises(ValueError, match=r"npc\.v1\.json"):
        async with connect("ws://127.0.0.1", subprotocol="npc.v9"):
            pass
