"""What was said between a player and an NPC, as text."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from npc_engine.world import EntityId


class ConversationId(NamedTuple):
    """A player and an NPC have one conversation at a time."""

    player: EntityId
    npc: EntityId


@dataclass(frozen=True, slots=True)
class Exchange:
    """An utterance and what the NPC said to it; a cancelled reply ends early."""

    utterance: str
    speech: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """The exchanges so far, and the utterances that wait for the NPC to finish."""

    exchanges: tuple[Exchange, ...] = ()
    waiting: tuple[tuple[int, str], ...] = ()  # request id, utterance; the first one is being answered

    @property
    def is_idle(self) -> bool:
        return not self.waiting

    def hear(self, request_id: int, utterance: str) -> Conversation:
        """Somebody said something."""
        return replace(self, waiting=(*self.waiting, (request_id, utterance)))

    def answer(self, speech: str) -> Conversation:
        """The NPC has answered the first waiting utterance."""
        (_, utterance), *rest = self.waiting
        return replace(self, exchanges=(*self.exchanges, Exchange(utterance, speech)), waiting=tuple(rest))

    def without_waiting(self) -> Conversation:
        """Only what was said and answered."""
        return replace(self, waiting=())

    def give_up(self) -> Conversation:
        """The first waiting utterance stays without an answer, as if it had not been said."""
        return replace(self, waiting=self.waiting[1:])
