"""The contexts of conversations: least recently used first out, busy ones never."""

from __future__ import annotations

from typing import cast

import pytest

from npc_engine.inference.context_pool import ContextPool, ConversationContext


class Sized:
    """Stands in for a context."""

    def __init__(self) -> None:
        self.num_bytes = 10

    def close(self) -> None:
        self.num_bytes = 0


def pool(max_bytes: int) -> ContextPool:
    return ContextPool(lambda: cast(ConversationContext, Sized()), max_bytes)


def use(contexts: ContextPool, *names: str) -> None:
    for name in names:
        contexts.take(name)
        contexts.put_back(name)


def test_a_conversation_gets_its_context_back() -> None:
    """The same object, until it was evicted."""
    contexts = pool(100)
    first = contexts.take("a")
    assert contexts.is_busy("a")
    assert contexts.peek("a") is None
    contexts.put_back("a")
    assert contexts.peek("a") is first
    assert contexts.take("a") is first


def test_the_least_recently_used_goes_first() -> None:
    """Using a again makes b the oldest."""
    contexts = pool(20)
    use(contexts, "a", "b", "a", "c")
    assert [contexts.peek(name) is not None for name in "abc"] == [True, False, True]
    assert contexts.num_bytes == 20


def test_peeking_is_not_a_use() -> None:
    """`peek` changes no order."""
    contexts = pool(20)
    use(contexts, "a", "b")
    contexts.peek("a")
    use(contexts, "c")
    assert contexts.peek("a") is None


def test_busy_contexts_count_and_stay() -> None:
    """They take their bytes from the idle ones; the one given back last stays in any case."""
    contexts = pool(20)
    use(contexts, "idle")
    for name in "abc":
        contexts.take(name)
    assert contexts.num_bytes == 40
    contexts.put_back("a")
    assert contexts.peek("idle") is None
    assert contexts.peek("a") is not None
    assert contexts.is_busy("b")
    contexts.put_back("b")
    contexts.put_back("c")
    assert contexts.num_bytes == 20


def test_a_conversation_has_one_reply_at_a_time() -> None:
    """Taking it twice is our own mistake."""
    contexts = pool(20)
    contexts.take("a")
    with pytest.raises(AssertionError):
        contexts.take("a")
