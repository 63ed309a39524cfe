"""The deterministic core:

inputs of a tick in, outputs out. No input or output, no clock, no randomness but the seed's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from npc_engine.dialogue.conversation import Conversation, ConversationId
from npc_engine.errors import PatchError
from npc_engine.world import EntityId, WorldState


@dataclass(frozen=True, slots=True)
class PatchWorld:
    """A game changes the world (RFC 6902)."""

    request_id: int
    operations: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class PassTime:
    """A game lets time pass."""

    request_id: int
    minutes: int


@dataclass(frozen=True, slots=True)
class Say:
    """A player says something to an NPC."""

    request_id: int
    player: EntityId
    npc: EntityId
    text: str


@dataclass(frozen=True, slots=True)
class ReplyEnded:
    """What the model said enters the simulation like what a player does. `speech` None: nothing came of it.

    `sampled_token_ids` are the reply's tokens with the stop token that ended it, if one did (`is_stopped`); the last
    `num_folded` turns of its prompt had been lost and were computed again with it.
    """

    request_id: int
    player: EntityId
    npc: EntityId
    speech: str | None
    sampled_token_ids: tuple[int, ...] = ()
    is_stopped: bool = True
    num_folded: int = 0


Input = PatchWorld | PassTime | Say | ReplyEnded


@dataclass(frozen=True, slots=True)
class ReplyDue:
    """An NPC has to answer. `seed` is for the sampler."""

    request_id: int
    conversation: ConversationId
    text: str
    seed: int


@dataclass(frozen=True, slots=True)
class Refused:
    """An input that did not apply; the state is as it was before it."""

    request_id: int
    error: PatchError


@dataclass(slots=True)
class Outputs:
    """What came of one tick. `changed_by` gives the entities that each request changed."""

    tick: int
    changed: set[EntityId] = field(default_factory=set)
    changed_by: dict[int, frozenset[EntityId]] = field(default_factory=dict)
    replies: list[ReplyDue] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)


class Simulation:
    """World state and conversations, moved by ticks.

    The same seed and the same inputs at the same ticks give the same outputs and the same state, on any machine.
    """

    def __init__(
        self,
        state: WorldState,
        *,
        seed: int,
        tick: int = 0,
        conversations: Mapping[ConversationId, Conversation] | None = None,
    ) -> None:
        self.state = state
        self.seed = seed
        self.tick = tick
        self._conversations = dict(conversations or {})

    @property
    def conversations(self) -> Mapping[ConversationId, Conversation]:
        return self._conversations

    def conversation(self, conversation_id: ConversationId) -> Conversation:
        return self._conversations.get(conversation_id, Conversation())

    def advance(self, tick: int, inputs: Iterable[Input]) -> Outputs:
        """Apply the inputs in order and move to `tick`, which must lie ahead."""
        assert tick > self.tick, "time does not run back"
        self.tick = tick
        outputs = Outputs(tick)
        for each in inputs:
            match each:
                case PatchWorld():
                    self._patch(each, outputs)
                case PassTime():
                    self._pass_time(each, outputs)
                case Say(request_id, player, npc, text):
                    self._hear(ConversationId(player, npc), request_id, text, outputs)
                case ReplyEnded(_, player, npc, speech):
                    self._answer(ConversationId(player, npc), speech, outputs)
        return outputs

    def digest(self) -> str:
        """SHA-256 in hex of world and conversations, for comparing a replay with its recording."""
        digest = hashlib.sha256(self.state.digest().encode())
        for conversation_id, conversation in sorted(self._conversations.items()):
            digest.update(json.dumps([conversation_id, asdict(conversation)]).encode())
        return digest.hexdigest()

    def _patch(self, patch: PatchWorld, outputs: Outputs) -> None:
        try:
            self._changed(outputs, patch.request_id, self.state.apply(patch.operations))
        except PatchError as error:
            outputs.refused.append(Refused(patch.request_id, error))

    def _pass_time(self, passing: PassTime, outputs: Outputs) -> None:
        try:
            self._changed(outputs, passing.request_id, self.state.advance(passing.minutes))
        except ValueError as error:
            outputs.refused.append(Refused(passing.request_id, PatchError(f"minutes {passing.minutes}: {error}")))

    def _changed(self, outputs: Outputs, request_id: int, entities: frozenset[EntityId]) -> None:
        outputs.changed |= entities
        outputs.changed_by[request_id] = entities

    def _hear(self, conversation_id: ConversationId, request_id: int, text: str, outputs: Outputs) -> None:
        conversation = self.conversation(conversation_id)
        if conversation.is_idle:
            outputs.replies.append(self._due(conversation_id, request_id, text))
        self._conversations[conversation_id] = conversation.hear(request_id, text)

    def _answer(self, conversation_id: ConversationId, speech: str | None, outputs: Outputs) -> None:
        conversation = self.conversation(conversation_id)
        conversation = conversation.give_up() if speech is None else conversation.answer(speech)
        self._conversations[conversation_id] = conversation
        if conversation.waiting:
            outputs.replies.append(self._due(conversation_id, *conversation.waiting[0]))

    def _due(self, conversation_id: ConversationId, request_id: int, text: str) -> ReplyDue:
        seed = hashlib.blake2b(f"{self.seed}/{request_id}".encode(), digest_size=7).digest()
        return ReplyDue(request_id, conversation_id, text, int.from_bytes(seed, "little"))
