"""What comes back when somebody speaks to an NPC: a stream of speech, then the whole reply with its figures."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from npc_engine.errors import NpcEngineError
from npc_engine.inference import FinishReason


@dataclass(frozen=True, slots=True)
class ReplyDelta:
    """A piece of speech. `ends_sentence` is True when `text` completes a sentence (for subtitles and TTS)."""

    text: str
    ends_sentence: bool


@dataclass(frozen=True, slots=True)
class ReplyStats:
    """Figures of one reply.

    `ttft_ms` runs from the call of ``say`` to the first token. Of the `num_prompt_tokens`, `num_cached_tokens` were
    reused from cached blocks and `num_encoded_tokens` were computed on the way: the final block, and any block
    that was missing.
    """

    ttft_ms: float
    total_ms: float
    num_prompt_tokens: int
    num_cached_tokens: int
    num_encoded_tokens: int
    num_reply_tokens: int


@dataclass(frozen=True, slots=True)
class Action:
    """A typed game action that an NPC takes with its reply."""

    name: str
    arguments: dict[str, str | int | float | bool]


@dataclass(frozen=True, slots=True)
class Reply:
    """A finished reply. `speech` is whole even when the stream was not read."""

    request_id: int
    npc: str
    player: str
    speech: str
    emotion: str | None
    actions: tuple[Action, ...]
    finish_reason: FinishReason
    stats: ReplyStats


class ReplyStream:
    """One reply while it is spoken::

        stream = engine.say("wick", "Who was here last night?")
        async for delta in stream:
            print(delta.text, end="")
        reply = await stream.result()

    Iterate at most once; :meth:`result` may be awaited instead or after. The queue holds a few
    entries per reply token at most, so ``SamplingParams.max_tokens`` bounds it.
    """

    def __init__(self, request_id: int, npc: str, player: str, cancel: Callable[[], None]) -> None:
        self.request_id = request_id
        self.npc = npc
        self.player = player
        self._cancel = cancel
        self._deltas: asyncio.Queue[ReplyDelta | None] = asyncio.Queue()
        self._result: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        # A caller who drops the stream must not be told of an exception nobody awaited.
        self._result.add_done_callback(lambda done: done.cancelled() or done.exception())

    def __aiter__(self) -> AsyncIterator[ReplyDelta]:
        return self._iterate()

    async def _iterate(self) -> AsyncIterator[ReplyDelta]:
        while (delta := await self._deltas.get()) is not None:
            yield delta
        if (error := self._result.exception()) is not None:
            raise error

    async def result(self) -> Reply:
        """The whole reply; raises what made it fail. Cancelling the wait does not cancel the reply."""
        return await asyncio.shield(self._result)

    def cancel(self) -> None:
        """Stop speaking within one decode step. The reply then finishes with what was said so far."""
        self._cancel()

    def feed(self, delta: ReplyDelta) -> None:
        """Called by the engine on the event loop for each piece of speech."""
        self._deltas.put_nowait(delta)

    def finish(self, outcome: Reply | NpcEngineError) -> None:
        """Called by the engine once, on the event loop."""
        if self._result.done():
            return
        if isinstance(outcome, Reply):
            self._result.set_result(outcome)
        else:
            self._result.set_exception(outcome)
        self._deltas.put_nowait(None)
