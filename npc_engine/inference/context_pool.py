"""The contexts of the conversations that are going on."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Protocol

from npc_engine.blocks import Block, BlockId, BlockKV, Layout, Placement


class NewTokens(Protocol):
    """Something that new tokens can be computed behind."""

    @property
    def position(self) -> int:
        """The position of the next token."""
        ...

    def advance(self, num_tokens: int) -> None:
        """All layers have stored these new tokens: they belong to it now."""
        ...


class ConversationContext(NewTokens, Protocol):
    """Everything that one conversation's next tokens see."""

    @property
    def num_bytes(self) -> int:
        """Of the memory that belongs to this conversation alone."""
        ...

    @property
    def holds_blocks(self) -> bool:
        """True if cached blocks can't be evicted because of it."""
        ...

    def stale(self, layout: Layout) -> list[Placement]:
        """The placements of `layout` that it does not have yet."""
        ...

    def place(self, layout: Layout, kv_of: Callable[[BlockId], BlockKV], room: int = 0) -> int:
        """Have exactly `layout`, and room for so many tokens behind it. What is stale has to be cached.

        Returns the tokens that were new. Raises :class:`~npc_engine.errors.BlockMemoryError`.
        """
        ...

    def seal(self, block: Block) -> BlockKV:
        """The tokens behind the layout become `block`, in place. Returns a copy of them for the cache."""
        ...

    def close(self) -> None:
        """Give its memory back."""
        ...


class ContextPool:
    """Contexts by conversation, least recently used first out once they exceed `max_bytes` together.

    A context can always be made again from cached blocks, so losing one costs a copy and nothing else.
    """

    def __init__(self, create: Callable[[], ConversationContext], max_bytes: int) -> None:
        self._create = create
        self._max_bytes = max_bytes
        self._idle: OrderedDict[Hashable, ConversationContext] = OrderedDict()
        self._busy: dict[Hashable, ConversationContext] = {}

    @property
    def num_bytes(self) -> int:
        return sum(context.num_bytes for context in (*self._idle.values(), *self._busy.values()))

    def is_busy(self, conversation: Hashable) -> bool:
        return conversation in self._busy

    def peek(self, conversation: Hashable) -> ConversationContext | None:
        """The idle context of this conversation, if it still exists."""
        return self._idle.get(conversation)

    def ensure(self, conversation: Hashable) -> None:
        """Give the conversation a context, empty if it had none."""
        if not self.is_busy(conversation):
            self.take(conversation)
            self.put_back(conversation)

    def take(self, conversation: Hashable) -> ConversationContext:
        """The conversation's context, or a new one, for its next reply. Give it back with :meth:`put_back`."""
        assert conversation not in self._busy, "a conversation has one reply at a time"
        context = self._idle.pop(conversation, None) or self._create()
        self._busy[conversation] = context
        return context

    def drop_oldest(self) -> bool:
        """Close the idle context that was used least recently of those that hold blocks. False if there is none."""
        for conversation, context in self._idle.items():
            if context.holds_blocks:
                del self._idle[conversation]
                context.close()
                return True
        return False

    def put_back(self, conversation: Hashable) -> None:
        self._idle[conversation] = self._busy.pop(conversation)
        while len(self._idle) > 1 and self.num_bytes > self._max_bytes:
            _, context = self._idle.popitem(last=False)
            context.close()
