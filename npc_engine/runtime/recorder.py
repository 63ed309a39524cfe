"""Writes a recording while an engine runs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Self

from pydantic import BaseModel

from npc_engine import __version__
from npc_engine.config import EngineConfig
from npc_engine.errors import RecordingError
from npc_engine.inference import FinishedOutput, GenerationRequest, Model
from npc_engine.runtime.recording import recording_file
from npc_engine.runtime.recording_lines import (
    FORMAT_VERSION,
    End,
    Header,
    RecordedInput,
    RecordedModel,
    RecordedPassTime,
    RecordedPatch,
    RecordedPrompt,
    RecordedReply,
    RecordedReplyEnded,
    RecordedSampling,
    RecordedSay,
    RecordedWorld,
    Tick,
    prompt_blocks,
)
from npc_engine.runtime.reply import Reply
from npc_engine.runtime.session import DuePrompt, Session, SessionOutputs
from npc_engine.runtime.simulation import Input, PassTime, PatchWorld, ReplyEnded, Say
from npc_engine.world import Kind, entity_id

_MAX_PATCH_DEPTH: Final = 64  # twice what a world accepts


class Recorder:
    """Writes a recording; an :class:`~npc_engine.runtime.observer.Observer`::

        with Recorder(Path("talk.jsonl")) as recorder:
            async with await NpcEngine.open("worlds/ninestep", observer=recorder) as engine:
                ...

    Records from a new game on, and ends when a save is loaded; if no game ever starts, no file stays. A disk that fails
    does not stop the game: recording stops, and :meth:`close` raises. `now_s` is any clock that runs forward.
    """

    def __init__(self, path: Path, *, now_s: Callable[[], float] = time.monotonic) -> None:
        """Create the file. :class:`RecordingError` if there is one already, or it can't be written."""
        self.path = recording_file(path)
        self._now_s = now_s
        self._started_s = now_s()
        self._session: Session | None = None
        self._tick = 0
        self._error: RecordingError | None = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror or error
            raise RecordingError(f"{self.path}: its folder can't be made ({reason}); record to another file") from error
        try:
            self._file = self.path.open("x", encoding="utf-8", newline="\n")
        except FileExistsError as error:
            raise RecordingError(f"{self.path}: exists already; delete it, or record to another file") from error
        except OSError as error:
            raise RecordingError(f"{self.path}: {error.strerror or error}; record to another file") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Write the end. Idempotent. Raises what stopped the recording early, once."""
        if self._session is None and not self._file.closed:
            self._file.close()
            self.path.unlink(missing_ok=True)
        self._end("closed")
        error, self._error = self._error, None
        if error is not None:
            raise error

    # ── what an engine tells ─────────────────────────────────────────────────────────────────────────────────

    def on_start(self, session: Session, model: Model, config: EngineConfig) -> None:
        assert self._session is None, "one recorder, one session"
        assert session.simulation.tick == 0, "recorded from the start of a game"
        self._session = session
        self._started_s = self._now_s()
        state, identity = session.state, model.identity
        self._write(
            lambda: Header(
                format=FORMAT_VERSION,
                engine=__version__,
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                world=RecordedWorld(name=state.info.id, digest=state.digest()),
                model=RecordedModel(
                    name=model.name,
                    architecture=model.config.architecture,
                    fingerprint=identity.fingerprint,
                    adapter=identity.adapter,
                    dtype=identity.dtype,
                    rope=identity.rope,
                ),
                seed=session.simulation.seed,
                max_context_tokens=config.max_context_tokens,
                max_utterance_tokens=config.max_utterance_tokens,
                sampling=RecordedSampling.of(config.sampling),
                names={
                    **{str(npc): state.character(npc).name for npc in state.npcs()},
                    **{str(player): state.player(player).name for player in state.players()},
                },
            )
        )

    def on_tick(
        self, inputs: Sequence[Input], outputs: SessionOutputs, requests: Sequence[GenerationRequest], session: Session
    ) -> None:
        if self._file.closed:
            return
        if session is not self._session:
            # What follows starts from a save, which a recording does not hold.
            self._end("a save was loaded")
            return
        refused = {each.request_id for each in outputs.world.refused}
        self._tick = outputs.world.tick
        self._write(
            lambda: Tick(
                at_ms=self._at_ms(),
                tick=outputs.world.tick,
                inputs=tuple(_recorded_inputs(inputs, refused)),
                changed=tuple(sorted(outputs.world.changed)),
                refused=tuple(each.request_id for each in outputs.world.refused),
                digest=session.simulation.digest(),
                prompts=tuple(
                    _recorded_prompt(due, request) for due, request in zip(outputs.prompts, requests, strict=True)
                ),
            )
        )

    def on_reply(self, reply: Reply, finished: FinishedOutput) -> None:
        if self._file.closed:
            return
        stats = reply.stats
        self._write(
            lambda: RecordedReply(
                at_ms=self._at_ms(),
                request_id=reply.request_id,
                player=entity_id(Kind.PLAYER, reply.player),
                npc=entity_id(Kind.CHARACTER, reply.npc),
                speech=reply.speech,
                finish_reason=finished.reason,
                sampled_token_ids=finished.sampled_token_ids,
                num_folded=finished.num_folded,
                turn_id=finished.turn.id.hex() if finished.turn is not None else None,
                num_prompt_tokens=stats.num_prompt_tokens,
                num_cached_tokens=stats.num_cached_tokens,
                num_encoded_tokens=stats.num_encoded_tokens,
                num_reply_tokens=stats.num_reply_tokens,
                ttft_ms=round(stats.ttft_ms, 3),
                total_ms=round(stats.total_ms, 3),
            )
        )

    def _end(self, reason: str) -> None:
        if not self._file.closed and self._session is not None:
            self._write(lambda: End(at_ms=self._at_ms(), tick=self._tick, reason=reason))
        self._file.close()

    def _write(self, make: Callable[[], BaseModel]) -> None:
        """Write a line and flush it. What can't be written ends the recording, not the game."""
        if self._file.closed:
            return
        try:
            self._file.write(make().model_dump_json() + "\n")
            self._file.flush()
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            self._error = RecordingError(f"{self.path}: recording stopped at tick {self._tick}: {reason}")
            self._file.close()

    def _at_ms(self) -> float:
        return round((self._now_s() - self._started_s) * 1000, 3)


@contextmanager
def recording_to(path: Path | None) -> Iterator[Recorder | None]:
    """A recorder, closed in the end; none for a command that was not told to record."""
    if path is None:
        yield None
        return
    with Recorder(path) as recorder:
        yield recorder


def _recorded_inputs(inputs: Iterable[Input], refused: set[int]) -> Iterator[RecordedInput]:
    for each in inputs:
        match each:
            case PatchWorld(request_id, operations):
                try:
                    plain = tuple(_plain(operation, 0) for operation in operations)
                    yield RecordedPatch(request_id=request_id, operations=plain)
                except ValueError:
                    # Not JSON, so the world refused it and nothing came of it: there is nothing to replay.
                    if request_id not in refused:
                        raise
            case PassTime(request_id, minutes):
                yield RecordedPassTime(request_id=request_id, minutes=minutes)
            case Say(request_id, player, npc, text):
                yield RecordedSay(request_id=request_id, player=player, npc=npc, text=text)
            case ReplyEnded():
                yield RecordedReplyEnded(**asdict(each))


def _plain(value: Any, depth: int) -> Any:
    """The same value of plain dicts and lists; ValueError when it is nested too deep."""
    if depth > _MAX_PATCH_DEPTH:
        raise ValueError("nested too deep")
    if isinstance(value, Mapping):
        return {name: _plain(each, depth + 1) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each, depth + 1) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("not a number that JSON can say")
    return value


def _recorded_prompt(due: DuePrompt, request: GenerationRequest) -> RecordedPrompt:
    conversation_id = due.due.conversation
    return RecordedPrompt(
        request_id=request.request_id,
        player=conversation_id.player,
        npc=conversation_id.npc,
        blocks=prompt_blocks(conversation_id.npc, due.prompt),
        final_token_ids=request.final_token_ids,
        seed=request.seed,
        sampling=RecordedSampling.of(request.sampling),
    )
