"""Having the blocks of those whom a player may speak to next."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Iterator
from typing import NamedTuple

from npc_engine.blocks import BlockId
from npc_engine.dialogue.conversation import ConversationId
from npc_engine.errors import NpcEngineError
from npc_engine.inference import WarmUp
from npc_engine.runtime.prompt import Prompt
from npc_engine.runtime.session import Session
from npc_engine.world import Kind, entity_id

_MAX_NPCS = 16  # near one player


class WarmUpDue(NamedTuple):
    """A warm-up to hand to the model; a later one of the same key supersedes it."""

    key: Hashable
    warm_up: WarmUp


class Warmer:
    """Knows which blocks were asked for, and who waits for them."""

    def __init__(self) -> None:
        self._asked_for: dict[ConversationId, frozenset[BlockId]] = {}
        self._waiting: dict[Hashable, asyncio.Future[None]] = {}

    def near_players(self, session: Session) -> tuple[list[WarmUpDue], int]:
        """Warm-ups for NPCs in reach of a player whose blocks have changed, and how many different blocks are new."""
        due: list[WarmUpDue] = []
        new_ids: set[BlockId] = set()
        for conversation_id, prompt in _prompts_near_players(session):
            new = {block.id for block in prompt.blocks} - self._asked_for.get(conversation_id, frozenset())
            if new:
                new_ids |= new
                due.append(self.ask_for(conversation_id, prompt))
        return due, len(new_ids)

    def ask_for(self, conversation_id: ConversationId, prompt: Prompt, *, is_awaited: bool = False) -> WarmUpDue:
        """The warm-up that brings a prompt to memory. One that is awaited is superseded by no other."""
        self._asked_for[conversation_id] = frozenset(block.id for block in prompt.blocks)
        key = object() if is_awaited else conversation_id
        return WarmUpDue(key, WarmUp(prompt.blocks, prompt.turns, conversation_id, is_awaited))

    async def wait(self, due: WarmUpDue) -> None:
        """Wait for an awaited warm-up that was just handed over."""
        waiting = self._waiting[due.key] = asyncio.get_running_loop().create_future()
        await waiting

    def done(self, key: Hashable) -> None:
        """A warm-up is done, or was given up."""
        waiting = self._waiting.pop(key, None)
        if waiting is not None and not waiting.done():  # whoever waited may have been cancelled
            waiting.set_result(None)

    def forget(self) -> None:
        """Another game was loaded: what was asked for may not be what is wanted."""
        self._asked_for.clear()

    def fail(self, error: NpcEngineError) -> None:
        """Nothing will be warmed any more."""
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(error)
        self._waiting.clear()


def _prompts_near_players(session: Session) -> Iterator[tuple[ConversationId, Prompt]]:
    state = session.state
    for player in state.players():
        for npc in state.npcs_at(entity_id(Kind.PLACE, state.player(player).place))[:_MAX_NPCS]:
            conversation_id = ConversationId(player, npc)
            try:
                yield conversation_id, session.prompt(conversation_id)
            except NpcEngineError:
                continue  # a prompt that can't be built is reported to whoever speaks
