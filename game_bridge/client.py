"""The reference client, for tools, tests and demos in Python::

async with connect("ws://127.0.0.1:8765") as bridge:
    async for delta in bridge.say("mira", "Who was here last night?"):
        print(delta.text, end="")
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from pydantic import ValidationError
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as open_websocket
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI
from websockets.typing import Subprotocol

from game_bridge import messages
from game_bridge.codec import CODECS, Codec, MsgpackCodec
from game_bridge.errors import ConnectError, ConnectionLostError, DecodeError, RequestError
from game_bridge.messages import ClientMessage, ServerMessage, parse_server_message
from npc_engine.config import SamplingParams

MAX_SERVER_MESSAGE_BYTES = 16 << 20
MAX_QUEUED_REQUESTS = 1024

logger = logging.getLogger(__name__)


@asynccontextmanager
async def connect(
    url: str,
    *,
    token: str | None = None,
    player: str = "player",
    client: str = "python",
    subprotocol: str = MsgpackCodec.subprotocol,
) -> AsyncGenerator[Bridge, None]:
    """Open a session; leaving the block closes it.

    Raises:
        ConnectError: nobody listens there, or the server refuses (`close_code` tells why).
        ValueError: an unknown `subprotocol`.
    """
    if subprotocol not in CODECS:
        raise ValueError(f"unknown subprotocol {subprotocol!r}; known are {', '.join(CODECS)}")
    try:
        websocket = await open_websocket(
            url,
            subprotocols=[Subprotocol(subprotocol)],
            compression=None,
            max_size=MAX_SERVER_MESSAGE_BYTES,
            proxy=None,  # a game's engine is on this machine or in its network
        )
    except (OSError, InvalidHandshake, InvalidURI) as error:
        raise ConnectError(f"can't connect to {url}: {error}") from error
    async with websocket:
        codec = CODECS[subprotocol]
        hello = messages.Hello(id=1, version=messages.PROTOCOL_VERSION, token=token, client=client, player=player)
        welcome = await _shake_hands(websocket, codec, hello)
        bridge = Bridge(websocket, codec, welcome)
        try:
            yield bridge
        finally:
            await bridge.close()


class Bridge:
    """An open session, made by :func:`connect`.

    `welcome` is what the server said about itself: version, session, tick, world, model, npcs, limits. Arguments that
    the protocol has no place for (an advance by 0 minutes, say) raise ValueError before anything is sent.
    """

    def __init__(self, websocket: ClientConnection, codec: Codec, welcome: messages.Welcome) -> None:
        self.welcome = welcome
        self._websocket = websocket
        self._codec = codec
        self._next_id = welcome.id + 1
        self._outbox: asyncio.Queue[ClientMessage] = asyncio.Queue(MAX_QUEUED_REQUESTS)
        self._answers: dict[int, asyncio.Future[ServerMessage]] = {}
        self._speeches: dict[int, Speech] = {}
        self._change: messages.WorldChanged | None = None  # what nobody fetched yet, merged
        self._changed = asyncio.Event()
        self._lost: ConnectionLostError | None = None
        self._tasks = (asyncio.create_task(self._read()), asyncio.create_task(self._write()))

    @property
    def npcs(self) -> tuple[messages.NpcCard, ...]:
        """The NPCs at the time of the welcome; :meth:`list_npcs` asks again."""
        return self.welcome.npcs

    def say(self, npc: str, text: str, *, sampling: messages.Sampling | SamplingParams | None = None) -> Speech:
        """Speak to an NPC. The request is on its way when this returns; iterate the result or await its `result()`.

        Raises:
            ConnectionLostError: the session is over.
            RequestError: a field is wrong; nothing was sent.
        """
        request = _request(messages.Say, id=self._take_id(), npc=npc, text=text, sampling=_overrides(sampling))
        speech = Speech(self, request.id)
        self._post(request)
        self._speeches[request.id] = speech
        return speech

    async def list_npcs(self) -> tuple[messages.NpcCard, ...]:
        """Who can be spoken to, and where they are now."""
        answer = await self._ask(messages.ListNpcs(id=self._take_id()))
        assert isinstance(answer, messages.Npcs)
        return answer.npcs

    async def patch(self, operations: list[dict[str, Any]]) -> messages.Changed:
        """Change the world by a JSON Patch. Raises RequestError when it does not apply; nothing changed then."""
        return await self._ask_for_change(_request(messages.Patch, id=self._take_id(), operations=operations))

    async def advance(self, minutes: int) -> messages.Changed:
        """Let game time pass. Raises RequestError for a number of minutes that the protocol does not have."""
        return await self._ask_for_change(_request(messages.Advance, id=self._take_id(), minutes=minutes))

    async def ping(self) -> None:
        """Return when the server has answered."""
        await self._ask(messages.Ping(id=self._take_id()))

    async def world_changes(self) -> AsyncIterator[messages.WorldChanged]:
        """Changes of the world, by whomever, from the welcome on. What was not fetched in time arrives as one.

        For one reader at a time. Ends when the session does.
        """
        while True:
            await self._changed.wait()
            self._changed.clear()
            change, self._change = self._change, None
            if change is not None:
                yield change
            if self._lost is not None:
                self._changed.set()  # so that a later reader ends, too
                return

    async def close(self) -> None:
        """End the session. What still waits gets ConnectionLostError. Idempotent."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._lose(ConnectionLostError("the session was closed"))
        await self._websocket.close()

    def _take_id(self) -> int:
        self._next_id += 1
        return self._next_id - 1

    def _post(self, request: ClientMessage) -> None:
        if self._lost is not None:
            raise self._lost
        try:
            self._outbox.put_nowait(request)
        except asyncio.QueueFull:
            raise RequestError(
                messages.ErrorCode.TOO_MANY_REQUESTS, f"{MAX_QUEUED_REQUESTS} requests wait to be sent"
            ) from None

    async def _ask(self, request: ClientMessage) -> ServerMessage:
        self._post(request)
        answer: asyncio.Future[ServerMessage] = asyncio.get_running_loop().create_future()
        self._answers[request.id] = answer
        try:
            return await answer
        finally:
            self._answers.pop(request.id, None)

    async def _ask_for_change(self, request: messages.Patch | messages.Advance) -> messages.Changed:
        answer = await self._ask(request)
        assert isinstance(answer, messages.Changed)
        return answer

    async def _read(self) -> None:
        try:
            while True:
                message = parse_server_message(self._codec.decode(await self._websocket.recv()))
                if message is not None:
                    self._deliver(message)
        except ConnectionClosed as error:
            self._lose(ConnectionLostError(*_why_closed(error)))
        except DecodeError as error:
            self._lose(ConnectionLostError(f"the server sent what is no message: {error}"))

    async def _write(self) -> None:
        try:
            while True:
                await self._websocket.send(self._codec.encode(await self._outbox.get()))
        except ConnectionClosed:
            return  # the reader tells why

    def _deliver(self, message: ServerMessage) -> None:
        match message:
            case messages.WorldChanged():
                self._change = message if self._change is None else _merge(self._change, message)
                self._changed.set()
            case messages.ReplyStart():
                pass
            case messages.ReplyDelta():
                if (speech := self._speeches.get(message.id)) is not None:
                    speech.feed(message)
            case messages.ReplyEnd():
                if (speech := self._speeches.pop(message.id, None)) is not None:
                    speech.finish(message)
            case messages.Error():
                error = RequestError(message.code, message.message)
                if message.id is None:  # a cancel that came too fast; everything else we send has an id of its own
                    logger.warning("the server refused a message: %s", error)
                    return
                if (speech := self._speeches.pop(message.id, None)) is not None:
                    speech.finish(error)
                elif (answer := self._answers.get(message.id)) is not None and not answer.done():
                    answer.set_exception(error)
            case _:
                if (answer := self._answers.get(message.id)) is not None and not answer.done():
                    answer.set_result(message)

    def _lose(self, error: ConnectionLostError) -> None:
        """Everything that waits fails with `error`; the first one stays."""
        if self._lost is not None:
            return
        self._lost = error
        for speech in self._speeches.values():
            speech.finish(error)
        self._speeches.clear()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(error)
        self._changed.set()

    def _cancel(self, request_id: int) -> None:
        if request_id in self._speeches:
            self._post(messages.Cancel(id=request_id))


class Speech:
    """A reply while it is spoken: iterate at most once, and :meth:`result` instead or after.

    The queue holds at most one entry per reply token, so it is bounded by the reply's length.
    """

    def __init__(self, bridge: Bridge, request_id: int) -> None:
        self.request_id = request_id
        self._bridge = bridge
        self._deltas: asyncio.Queue[messages.ReplyDelta | None] = asyncio.Queue()
        self._result: asyncio.Future[messages.ReplyEnd] = asyncio.get_running_loop().create_future()
        # Who drops the reply must not be told of an exception nobody awaited.
        self._result.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def __aiter__(self) -> AsyncIterator[messages.ReplyDelta]:
        while (delta := await self._deltas.get()) is not None:
            yield delta
        if (error := self._result.exception()) is not None:
            raise error

    async def result(self) -> messages.ReplyEnd:
        """The whole reply. Raises RequestError or ConnectionLostError. Cancelling the wait does not cancel it."""
        return await asyncio.shield(self._result)

    def cancel(self) -> None:
        """Ask the NPC to stop; the reply then ends with what was said so far. Nothing if it has ended."""
        self._bridge._cancel(self.request_id)

    def feed(self, delta: messages.ReplyDelta) -> None:
        """Called by the bridge for each delta."""
        self._deltas.put_nowait(delta)

    def finish(self, outcome: messages.ReplyEnd | RequestError | ConnectionLostError) -> None:
        """Called by the bridge once."""
        if isinstance(outcome, messages.ReplyEnd):
            self._result.set_result(outcome)
        else:
            self._result.set_exception(outcome)
        self._deltas.put_nowait(None)


async def _shake_hands(websocket: ClientConnection, codec: Codec, hello: messages.Hello) -> messages.Welcome:
    refusal = ""
    try:
        await websocket.send(codec.encode(hello))
        while True:
            message = parse_server_message(codec.decode(await websocket.recv()))
            match message:
                case messages.Welcome():
                    return message
                case messages.Error():
                    refusal = message.message  # the close that follows tells the code
    except ConnectionClosed as error:
        text, code = _why_closed(error)
        raise ConnectError(refusal or text, code) from error
    except DecodeError as error:
        raise ConnectError(f"this is no server of this protocol: {error}") from error


def _why_closed(error: ConnectionClosed) -> tuple[str, int | None]:
    if error.rcvd is None:
        return "the connection was lost", None
    reason = error.rcvd.reason or "the server closed the connection"
    return f"{reason} (close code {error.rcvd.code})", error.rcvd.code


def _merge(old: messages.WorldChanged, new: messages.WorldChanged) -> messages.WorldChanged:
    return messages.WorldChanged(
        tick=new.tick,
        entities=tuple(dict.fromkeys((*old.entities, *new.entities))),
        num_changed_blocks=old.num_changed_blocks + new.num_changed_blocks,
    )


M = TypeVar("M", bound=messages.Message)


def _request(kind: type[M], **fields: Any) -> M:
    """A message to be sent. What the server would refuse is refused here, in its words."""
    try:
        return kind(**fields)
    except ValidationError as error:
        raise _refusal(kind.model_fields["type"].default, error) from None


def _overrides(sampling: messages.Sampling | SamplingParams | None) -> messages.Sampling | None:
    if not isinstance(sampling, SamplingParams):
        return sampling
    try:
        return messages.Sampling.of(sampling)
    except ValidationError as error:
        raise _refusal("say: sampling", error) from None


def _refusal(what: str, error: ValidationError) -> RequestError:
    return RequestError(messages.ErrorCode.BAD_MESSAGE, f"{what}: {messages.explain(error)}")
