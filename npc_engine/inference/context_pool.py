"""The assembled contexts of the conversations that are going on."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

from npc_engine.inference.context import AssembledContext


class ContextPool:
    """Assembled contexts by conversation, least recently used first out once they exceed `max_bytes` together.

    A context can always be assembled again from cached blocks, so losing one costs a copy and nothing else.
    """

    def __init__(self, create: Callable[[], AssembledContext], max_bytes: int) -> None:
        self._create = create
        self._max_bytes = max_bytes
        self._idle: OrderedDict[Hashable, AssembledContext] = OrderedDict()
        self._busy: dict[Hashable, AssembledContext] = {}

    @property
    def num_bytes(self) -> int:
        return sum(context.num_bytes for context in (*self._idle.values(), *self._busy.values()))

    def is_busy(self, conversation: Hashable) -> bool:
        return conversation in self._busy

    def peek(self, conversation: Hashable) -> AssembledContext | None:
        """The idle context of this conversation, if it still exists."""
        return self._idle.get(conversation)

    def ensure(self, conversation: Hashable) -> None:
        """Give the conversation a context, empty if it had none."""
        if not self.is_busy(conversation):
            self.take(conversation)
            self.put_back(conversation)

    def take(self, conversation: Hashable) -> AssembledContext:
        """The conversation's context, or a new one, for its next reply. Give it back with :meth:`put_back`."""
        assert conversation not in self._busy, "a conversation has one reply at a time"
        context = self._idle.pop(conversation, None) or self._create()
        self._busy[conversation] = context
        return context

    def put_back(self, conversation: Hashable) -> None:
        self._idle[conversation] = self._busy.pop(conversation)
        while len(self._idle) > 1 and self.num_bytes > self._max_bytes:
            self._idle.popitem(last=False)
