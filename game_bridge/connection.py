"""One client: moves frames between its socket and its session, and requests between the session and the engine.

::

    socket ─▶ _read ─▶ Session ─▶ a task per request ─▶ engine
    socket ◀─ _write ◀──────── outbox (bounded) ◀──────────┘

All tasks belong to :meth:`Connection.run`. When it returns they have ended, and replies nobody hears are cancelled.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from websockets.exceptions import ConnectionClosed

from game_bridge import messages
from game_bridge.codec import Codec
from game_bridge.limits import Limits
from game_bridge.messages import CloseCode, ErrorCode, ServerMessage
from game_bridge.ports import Engine, NpcInfo, Socket, WorldChange
from game_bridge.protocol import CloseSocket, Event, HandleRequest, Phase, SendFrame, Session, close_reason
from npc_engine.config import SamplingParams
from npc_engine.errors import EngineClosedError, NpcEngineError, PatchError, UnknownNameError, UserError, UtteranceError
from npc_engine.runtime.reply import Reply, ReplyStream

logger = logging.getLogger(__name__)


class _Finished(Exception):  # noqa: N818 - not an error: it ends the task group from inside
    pass


class Connection:
    """Serves one client until either side ends it.

    `sampling` is what a ``say`` without overrides gets. `now_s` gives the time for the rate limit.
    """

    def __init__(
        self,
        socket: Socket,
        engine: Engine,
        codec: Codec,
        *,
        session_id: str,
        limits: Limits,
        token: str | None,
        sampling: SamplingParams,
        now_s: Callable[[], float],
    ) -> None:
        self._socket = socket
        self._engine = engine
        self._session_id = session_id
        self._limits = limits
        self._sampling = sampling
        self._now_s = now_s
        self._session = Session(codec, limits=limits, token=token, now_s=now_s())
        self._player = "player"
        self._outbox: asyncio.Queue[str | bytes | CloseSocket] = asyncio.Queue(limits.max_outbox)
        self._streams: dict[int, ReplyStream] = {}
        self._tasks: asyncio.TaskGroup  # alive while run() is

    @property
    def phase(self) -> Phase:
        return self._session.phase

    @property
    def num_queued(self) -> int:
        """Frames that wait for the client to read."""
        return self._outbox.qsize()

    async def run(self) -> None:
        """Serve until the client is gone or was closed. Raises nothing for what a client does."""
        try:
            async with asyncio.TaskGroup() as self._tasks:
                reader = self._tasks.create_task(self._read())
                writer = self._tasks.create_task(self._write())
                await asyncio.wait({reader, writer}, return_when=asyncio.FIRST_COMPLETED)
                if reader.done() and reader.result():
                    await asyncio.wait({writer})  # the error that explains the close is still queued
                raise _Finished
        except* _Finished:
            pass
        except* Exception as bugs:
            logger.error("connection %s failed", self._session_id, exc_info=bugs)
            await self.close(CloseCode.INTERNAL_ERROR, "internal error")
        finally:
            self._session.connection_lost()

    async def close(self, code: int, reason: str) -> None:
        """Close the socket, by force when the client does not cooperate; :meth:`run` then ends. Idempotent."""
        self._session.close(code, reason)
        try:
            async with asyncio.timeout(self._limits.close_timeout_s):
                await self._socket.close(code, close_reason(reason))
        except TimeoutError:
            self._socket.abort()

    # --- frames

    async def _read(self) -> bool:
        """Read to the end. True when it is ours: the close is queued; False when the client went."""
        try:
            try:
                async with asyncio.timeout(self._limits.hello_timeout_s):
                    frame = await self._socket.recv()
            except TimeoutError:
                await self._do(self._session.hello_timed_out())
                return True
            while await self._do(self._session.receive(frame, self._now_s())):
                frame = await self._socket.recv()
        except ConnectionClosed:
            return False
        return True

    async def _write(self) -> None:
        try:
            while True:
                item = await self._outbox.get()
                if isinstance(item, CloseSocket):
                    await self.close(item.code, item.reason)
                    return
                async with asyncio.timeout(self._limits.send_timeout_s):
                    await self._socket.send(item)
        except ConnectionClosed:
            return
        except TimeoutError:
            logger.info("connection %s: the client reads nothing", self._session_id)
            self._socket.abort()

    async def _do(self, events: tuple[Event, ...]) -> bool:
        """Carry out events; False when the session ends with them."""
        for event in events:
            match event:
                case SendFrame(frame):
                    await self._outbox.put(frame)
                case HandleRequest(request):
                    await self._handle(request)
                case CloseSocket():
                    await self._outbox.put(event)
                    return False
        return True

    async def _send(self, message: ServerMessage) -> None:
        """Queue a message; waits while the outbox is full, which is how a slow client slows its own replies."""
        await self._outbox.put(self._session.encode(message))

    # --- requests

    async def _handle(self, request: messages.ClientMessage) -> None:
        match request:
            case messages.Hello():
                welcomed = asyncio.Event()
                self._tasks.create_task(self._follow_world(request, welcomed))
                await welcomed.wait()  # nothing may be answered before the welcome
            case messages.ListNpcs():
                await self._send(messages.Npcs(id=request.id, npcs=_cards(self._engine.npcs())))
            case messages.Ping():
                await self._send(messages.Pong(id=request.id))
            # Tasks take their first step in the order they were created, so the engine is called in the order of
            # arrival, and a change that waits for its tick doesn't hold up what comes after it.
            case messages.Say():
                self._tasks.create_task(self._speak(request))
            case messages.Patch() | messages.Advance():
                self._tasks.create_task(self._change(request))
            case messages.Cancel():
                # Behind the first step of a say that arrived in the same breath.
                asyncio.get_running_loop().call_soon(self._cancel, request.id)

    async def _follow_world(self, hello: messages.Hello, welcomed: asyncio.Event) -> None:
        self._player = hello.player
        logger.info("session %s: client %r speaks for %r", self._session_id, hello.client, hello.player)
        try:
            # Subscribed before the welcome is composed: no change can fall in between.
            async with self._engine.subscribe() as changes:
                await self._send(self._welcome(hello))
                welcomed.set()
                async for change in changes:
                    # While this waits for a slow client, the engine merges what comes.
                    await self._send(
                        messages.WorldChanged(
                            tick=change.tick, entities=change.entities, num_changed_blocks=change.num_changed_blocks
                        )
                    )
        except EngineClosedError as error:
            await self._do(self._session.close(CloseCode.GOING_AWAY, str(error)))

    def _welcome(self, hello: messages.Hello) -> messages.Welcome:
        world, model, limits = self._engine.world_info, self._engine.model_info, self._limits
        return messages.Welcome(
            id=hello.id,
            version=messages.PROTOCOL_VERSION,
            session=self._session_id,
            tick=self._engine.tick,
            world=messages.WorldCard(id=world.id, title=world.title),
            model=messages.ModelCard(
                name=model.name, fingerprint=model.fingerprint, device=model.device, dtype=model.dtype
            ),
            npcs=_cards(self._engine.npcs()),
            limits=messages.LimitsCard(
                max_message_bytes=limits.max_message_bytes,
                max_utterances=limits.max_utterances,
                max_changes=limits.max_changes,
                messages_per_s=limits.messages_per_s,
                message_burst=limits.message_burst,
            ),
        )

    async def _speak(self, say: messages.Say) -> None:
        sampling = say.sampling.applied_to(self._sampling) if say.sampling else self._sampling
        try:
            stream = self._engine.say(say.npc, say.text, player=self._player, sampling=sampling)
        except NpcEngineError as error:
            await self._send(_error(say.id, error))
            return
        self._streams[say.id] = stream
        heard = False
        try:
            await self._send(messages.ReplyStart(id=say.id, npc=say.npc))
            seq = 0
            async for delta in stream:
                await self._send(
                    messages.ReplyDelta(id=say.id, seq=seq, text=delta.text, ends_sentence=delta.ends_sentence)
                )
                seq += 1
            last: ServerMessage = _reply_end(say.id, await stream.result())
            heard = True
        except NpcEngineError as error:
            last = _error(say.id, error)
            heard = True
        finally:
            del self._streams[say.id]
            if not heard:
                stream.cancel()
        await self._send(last)

    def _cancel(self, request_id: int) -> None:
        if (stream := self._streams.get(request_id)) is not None:
            stream.cancel()

    async def _change(self, request: messages.Patch | messages.Advance) -> None:
        change: WorldChange
        try:
            if isinstance(request, messages.Patch):
                change = await self._engine.patch(request.operations)
            else:
                change = await self._engine.advance(request.minutes)
        except NpcEngineError as error:
            await self._send(_error(request.id, error))
            return
        await self._send(
            messages.Changed(
                id=request.id,
                tick=change.tick,
                entities=change.entities,
                num_changed_blocks=change.num_changed_blocks,
            )
        )


def _cards(npcs: tuple[NpcInfo, ...]) -> tuple[messages.NpcCard, ...]:
    return tuple(messages.NpcCard(id=npc.id, name=npc.name, role=npc.role, place=npc.place) for npc in npcs)


def _reply_end(request_id: int, reply: Reply) -> messages.ReplyEnd:
    stats = reply.stats
    return messages.ReplyEnd(
        id=request_id,
        npc=reply.npc,
        speech=reply.speech,
        emotion=reply.emotion,
        actions=tuple(messages.ActionCard(name=action.name, arguments=action.arguments) for action in reply.actions),
        finish_reason=reply.finish_reason.value,
        stats=messages.StatsCard(
            ttft_ms=stats.ttft_ms,
            total_ms=stats.total_ms,
            num_prompt_tokens=stats.num_prompt_tokens,
            num_cached_tokens=stats.num_cached_tokens,
            num_encoded_tokens=stats.num_encoded_tokens,
            num_reply_tokens=stats.num_reply_tokens,
        ),
    )


def _error(request_id: int, error: NpcEngineError) -> messages.Error:
    match error:
        case UnknownNameError():
            code = ErrorCode.UNKNOWN_NAME
        case UtteranceError():
            code = ErrorCode.BAD_UTTERANCE
        case PatchError():
            code = ErrorCode.BAD_PATCH
        case UserError():
            code = ErrorCode.REFUSED
        case _:
            code = ErrorCode.ENGINE_FAILED
    return messages.Error(id=request_id, code=code, message=str(error))
