"""Doubles for the bridge's two ports: an engine whose replies the test scripts, and a socket without a network."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.frames import Close

from game_bridge.codec import CODECS
from game_bridge.messages import ServerMessage, parse_server_message
from npc_engine.config import SamplingParams
from npc_engine.errors import EngineClosedError, NpcEngineError, PatchError, UnknownNameError, UtteranceError
from npc_engine.runtime.reply import Action, FinishReason, Reply, ReplyDelta, ReplyStats, ReplyStream

STATS = ReplyStats(
    ttft_ms=4.5, total_ms=20.25, num_prompt_tokens=900, num_cached_tokens=880, num_encoded_tokens=20, num_reply_tokens=3
)


@dataclass(frozen=True)
class FakeNpc:
    id: str
    name: str
    role: str
    place: str


@dataclass(frozen=True)
class FakeWorld:
    id: str = "harbour"
    title: str = "The Harbour"


@dataclass(frozen=True)
class FakeModel:
    name: str = "scripted"
    fingerprint: str = "abc123"
    device: str = "cpu"
    dtype: str = "float32"


@dataclass(frozen=True)
class FakeChange:
    tick: int
    entities: tuple[str, ...]
    num_changed_blocks: int


class ScriptedEngine:
    """An engine without a model.

    `script` holds the deltas that an NPC answers with at once. An NPC without a script stays silent until the test
    calls `stream.feed` and :meth:`end` on what :attr:`started` hands out. `calls` lists what was called, in order.
    """

    def __init__(self, script: dict[str, list[str]] | None = None) -> None:
        self.world_info = FakeWorld()
        self.model_info = FakeModel()
        self.tick = 7
        self.script = {"mira": ["Good ", "evening.", " Sit."]} if script is None else script
        self.calls: list[tuple[Any, ...]] = []
        self.sampling: list[SamplingParams | None] = []
        self.started: asyncio.Queue[ReplyStream] = asyncio.Queue()
        self.cancelled: asyncio.Queue[str] = asyncio.Queue()
        self.patch_gate = asyncio.Event()
        self.patch_gate.set()
        self.closed = False
        self._spoken: dict[int, str] = {}
        self._subscribers: list[asyncio.Queue[FakeChange]] = []

    @property
    def num_subscribers(self) -> int:
        return len(self._subscribers)

    def npcs(self) -> tuple[FakeNpc, ...]:
        return (FakeNpc("mira", "Mira", "innkeeper", "inn"), FakeNpc("tom", "Tom", "fisher", "quay"))

    def say(
        self, npc: str, text: str, *, player: str = "player", sampling: SamplingParams | None = None
    ) -> ReplyStream:
        self.calls.append(("say", npc, text, player))
        self.sampling.append(sampling)
        if npc not in ("mira", "tom"):
            raise UnknownNameError(f"no NPC {npc!r}; there are mira, tom")
        if not text.strip():
            raise UtteranceError("the utterance is empty")
        request_id = len(self.calls)
        stream = ReplyStream(request_id, npc, player, lambda: self._cancel(stream))
        if npc in self.script:
            for piece in self.script[npc]:
                stream.feed(ReplyDelta(piece, piece.endswith(".")))
            self._spoken[request_id] = "".join(self.script[npc])
            self.end(stream)
        else:
            self.started.put_nowait(stream)
        return stream

    def speak(self, stream: ReplyStream, piece: str) -> None:
        self._spoken[stream.request_id] = self._spoken.get(stream.request_id, "") + piece
        stream.feed(ReplyDelta(piece, piece.endswith(".")))

    def end(self, stream: ReplyStream, outcome: FinishReason | NpcEngineError = FinishReason.STOP) -> None:
        if isinstance(outcome, NpcEngineError):
            stream.finish(outcome)
            return
        stream.finish(
            Reply(
                request_id=stream.request_id,
                npc=stream.npc,
                player=stream.player,
                speech=self._spoken.get(stream.request_id, ""),
                emotion="calm",
                actions=(Action("pour", {"drink": "ale", "cups": 2}),),
                finish_reason=outcome,
                stats=STATS,
            )
        )

    async def patch(self, operations: list[dict[str, Any]]) -> FakeChange:
        self.calls.append(("patch", operations))
        await self.patch_gate.wait()
        for operation in operations:
            if operation.get("op") != "replace" or not str(operation.get("path", "")).startswith("/"):
                raise PatchError(f"operation {operation!r} does not apply")
        return self._change(tuple(operation["path"].split("/")[1] for operation in operations))

    async def advance(self, minutes: int) -> FakeChange:
        self.calls.append(("advance", minutes))
        return self._change(("world",))

    @asynccontextmanager
    async def subscribe(self) -> AsyncIterator[AsyncIterator[FakeChange]]:
        if self.closed:
            raise EngineClosedError("the engine is closed")
        queue: asyncio.Queue[FakeChange] = asyncio.Queue()
        self._subscribers.append(queue)

        async def changes() -> AsyncIterator[FakeChange]:
            while True:
                yield await queue.get()

        try:
            yield changes()
        finally:
            self._subscribers.remove(queue)

    def _change(self, entities: tuple[str, ...]) -> FakeChange:
        self.tick += 1
        change = FakeChange(self.tick, entities, len(entities))
        for queue in self._subscribers:
            queue.put_nowait(change)
        return change

    def _cancel(self, stream: ReplyStream) -> None:
        self.cancelled.put_nowait(stream.npc)
        self.end(stream, FinishReason.CANCELLED)


class FakeSocket:
    """The server's end of a socket. The test is the client: it pushes frames and takes what was sent.

    `takes` is how many frames the client reads before its socket is full; None is no end.
    """

    def __init__(self, takes: int | None = None) -> None:
        self.sent: asyncio.Queue[str | bytes] = asyncio.Queue()
        self.closed_with: tuple[int, str] | None = None
        self.aborted = False
        self.hangs_on_close = False
        self.full = asyncio.Event()  # set when a send had to wait
        self._incoming: asyncio.Queue[str | bytes] = asyncio.Queue()
        self._room = asyncio.Semaphore(takes if takes is not None else 1_000_000)
        self._gone: asyncio.Future[ConnectionClosed] = asyncio.get_running_loop().create_future()

    def push(self, *frames: str | bytes) -> None:
        for frame in frames:
            self._incoming.put_nowait(frame)

    def read_on(self, num_frames: int) -> None:
        for _ in range(num_frames):
            self._room.release()

    def hang_up(self) -> None:
        self._end(ConnectionClosed(None, None))

    async def message(self) -> ServerMessage:
        """The next message that the server sent as JSON."""
        frame = await self.sent.get()
        message = parse_server_message(CODECS["npc.v1.json"].decode(frame))
        assert message is not None
        return message

    async def recv(self) -> str | bytes:
        if self._incoming.empty() and not self._gone.done():
            frame = asyncio.ensure_future(self._incoming.get())
            try:
                await asyncio.wait({frame, self._gone}, return_when=asyncio.FIRST_COMPLETED)
                if frame.done():
                    return frame.result()
            finally:
                frame.cancel()
        if self._gone.done():
            raise self._gone.result()
        return self._incoming.get_nowait()

    async def send(self, frame: str | bytes) -> None:
        if self._room.locked():
            self.full.set()
        room = asyncio.ensure_future(self._room.acquire())
        try:
            await asyncio.wait({room, self._gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            room.cancel()
        if self._gone.done():
            raise self._gone.result()
        self.sent.put_nowait(frame)

    async def close(self, code: int, reason: str) -> None:
        if self.hangs_on_close:
            await asyncio.shield(self._gone)
        if self.closed_with is None:
            self.closed_with = (code, reason)
        self._end(ConnectionClosed(None, Close(code, reason)))

    def abort(self) -> None:
        self.aborted = True
        self._end(ConnectionClosed(None, None))

    def _end(self, error: ConnectionClosed) -> None:
        if not self._gone.done():
            self._gone.set_result(error)
