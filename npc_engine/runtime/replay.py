"""Verifying a recording against a model, tick by tick.

Needs no threads and no clock. World state and block ids have to be equal on any machine and in any dtype, because the
recorded model identity is what goes into them. Replies are not generated again: the recorded tokens are fed back, and
each has to be within a margin of the likeliest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from npc_engine.config import EngineConfig
from npc_engine.errors import NpcEngineError, RecordingError
from npc_engine.inference import Model
from npc_engine.runtime.differences import (
    Asked,
    MismatchError,
    Spoken,
    check_ended,
    check_outcome,
    check_prompts,
    check_turn,
    check_unanswered,
    describe,
)
from npc_engine.runtime.forced_replies import ForcedReplies
from npc_engine.runtime.recording import Numbered, Recording
from npc_engine.runtime.recording_lines import RecordedReply, RecordedReplyEnded, Tick
from npc_engine.runtime.session import Session, create_prompter
from npc_engine.runtime.simulation import Simulation
from npc_engine.world import World, WorldState

# Measured with the default model over worlds/ninestep, 6 turns, a hot change, 576 tokens: recorded in bfloat16 and
# verified in float32, the worst margin is 0.090 (0.101 with a repetition penalty); the other way round 0.125; within
# one dtype 0.0 (0.125 with a penalty). Its best logits lie between 16 and 32, where a bfloat16 has steps of 0.125; four
# steps leave room for other kernels and for models with larger logits. A token that was not chosen mostly lies further
# below; the block ids, which must be equal, guard what led to it.
DEFAULT_MARGIN: Final = 0.5

OnProgress = Callable[[int, int], None]
"""Gets (lines verified, lines)."""


@dataclass(frozen=True, slots=True)
class Verification:
    """A replay that did not differ.

    `worst_margin` is the largest logit margin of all `num_tokens` tokens that were checked; a reply that was sampled
    at a temperature has no likeliest tokens to compare with, and counts in `num_unchecked_replies`.
    """

    num_ticks: int
    num_replies: int
    num_unchecked_replies: int
    num_tokens: int
    worst_margin: float
    margin_limit: float


def find_world(recording: Recording) -> Path:
    """The folder of the recorded world: ``worlds/<name>`` beside the ``demos`` folder.

    Raises :class:`RecordingError` when it is not there.
    """
    folder = recording.path.absolute().parent.parent.parent / "worlds" / recording.header.world.name
    if not folder.is_dir():
        raise RecordingError(
            f"{recording.path}:1: world.name: no world {recording.header.world.name!r} at {folder}; "
            "give its folder with --world"
        )
    return folder


def verify(
    recording: Recording,
    world: World,
    model: Model,
    config: EngineConfig,
    *,
    margin_limit: float = DEFAULT_MARGIN,
    on_progress: OnProgress = lambda done, total: None,
) -> Verification:
    """Replay a recording and compare everything that is deterministic. Takes about as long as its prompts' prefill.

    Of `config` the memory limits count; the rest is as recorded. Raises :class:`RecordingError` at the first
    difference, which names tick, NPC and block.
    """
    check_world(recording, world)
    _check_model(recording, model)
    replay = _Replay(recording, world, model, config, margin_limit)
    for done, numbered in enumerate(recording.lines):
        on_progress(done, len(recording.lines))
        replay.follow(numbered)
    on_progress(len(recording.lines), len(recording.lines))
    return replay.verification()


def check_world(recording: Recording, world: World) -> None:
    """Raise :class:`RecordingError` unless a new game of `world` starts as the recorded one did."""
    recorded, digest = recording.header.world, WorldState.start(world).digest()
    if digest != recorded.digest:
        raise RecordingError(
            f"{recording.path}:1: world.digest: recorded with world {recorded.name!r} {recorded.digest[:12]}, "
            f"{world.info.id!r} here is {digest[:12]}; restore that version of the world, or record again"
        )


def _check_model(recording: Recording, model: Model) -> None:
    recorded, here = recording.header.model, model.identity
    for field in ("fingerprint", "adapter", "rope"):  # dtype may differ: that is what margins are for
        was, now = getattr(recorded, field), getattr(here, field)
        if was != now:
            raise RecordingError(
                f"{recording.path}:1: model.{field}: recorded with {recorded.name!r} {_short(was)}, "
                f"{model.name!r} here has {_short(now)}; give the recorded model with --model"
            )


def _short(value: str | None) -> str:
    if value is None:
        return "none"
    return value[:12] if len(value) == 64 else value


class _Replay:
    """One pass over a recording."""

    def __init__(
        self, recording: Recording, world: World, model: Model, config: EngineConfig, margin_limit: float
    ) -> None:
        header = recording.header
        # Under the recorded identity, block ids come out as recorded whatever dtype this machine computes in.
        model = replace(model, identity=header.model.identity)
        self._path = recording.path
        self._session = Session(
            Simulation(WorldState.start(world), seed=header.seed),
            create_prompter(model, header.apply_to(config)),
            header.model.fingerprint,
        )
        self._replies = ForcedReplies(model, config, margin_limit)
        self._margin_limit = margin_limit
        self._asked: dict[int, Asked] = {}
        self._spoken: dict[int, Spoken] = {}
        self._failed: set[int] = set()
        self._tick = 0
        self._num_ticks = 0

    def verification(self) -> Verification:
        replies = self._replies
        return Verification(
            self._num_ticks,
            replies.num_replies,
            replies.num_unchecked,
            replies.num_tokens,
            replies.worst_margin,
            self._margin_limit,
        )

    def follow(self, numbered: Numbered) -> None:
        """Replay one line. :class:`RecordingError` if it differs."""
        try:
            match numbered.line:
                case Tick():
                    self._follow_tick(numbered.line)
                case RecordedReply():
                    self._follow_reply(numbered.number, numbered.line)
        except MismatchError as error:
            where = f"tick {self._tick}" + (f", {error.npc}" if error.npc else "")
            raise RecordingError(f"{self._path}:{numbered.number}: {where}: {error}") from error

    def _follow_tick(self, line: Tick) -> None:
        session, simulation = self._session, self._session.simulation
        if line.tick <= simulation.tick:
            raise MismatchError(f"tick: {line.tick} does not lie behind {simulation.tick}")
        self._tick = line.tick
        ended = [each for each in line.inputs if isinstance(each, RecordedReplyEnded)]
        answered = [(each, *found) for each in ended if (found := self._take(each)) is not None]
        try:
            while simulation.tick < line.tick - 1:  # ticks without inputs are not recorded
                session.advance(())
            outputs = session.advance([each.to_input() for each in line.inputs])
        except (NpcEngineError, ValueError) as error:
            raise MismatchError(f"the inputs do not apply ({describe(line.inputs)}): {error}") from error
        for each, asked, spoken in answered:
            check_turn(each, asked, spoken, session.transcript(asked.due.due.conversation).turns[-1])
        check_prompts(line, outputs, self._replies.name_token)
        for recorded, due in zip(line.prompts, outputs.prompts, strict=True):
            self._asked[recorded.request_id] = Asked(line.tick, recorded, due)
        self._failed |= {each.request_id for each in outputs.failed}
        check_outcome(line, outputs, simulation.digest())
        self._num_ticks += 1

    def _take(self, ended: RecordedReplyEnded) -> tuple[Asked, Spoken] | None:
        """What a reply that enters the simulation was asked and how it was spoken; None if nothing was computed."""
        if ended.request_id in self._failed:  # it had no prompt, and that is how it ended
            self._failed.remove(ended.request_id)
            check_unanswered(ended)
            return None
        asked = self._asked.pop(ended.request_id, None)
        if asked is None:
            raise MismatchError(f"a reply to request {ended.request_id} ended, which no prompt is due for")
        spoken = self._spoken.pop(ended.request_id, None)
        check_ended(ended, asked, spoken)
        return (asked, spoken) if spoken is not None and spoken.line.turn_id is not None else None

    def _follow_reply(self, number: int, line: RecordedReply) -> None:
        asked = self._asked.get(line.request_id)
        if asked is None or line.request_id in self._spoken:
            raise MismatchError(f"a reply to request {line.request_id}, which no prompt is due for")
        self._tick = asked.tick
        self._replies.check(asked, line)
        self._spoken[line.request_id] = Spoken(number, line)
