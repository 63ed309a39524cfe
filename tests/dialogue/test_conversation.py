"""A conversation as text: who said what, and who waits."""

from __future__ import annotations

import pytest

from npc_engine.dialogue.conversation import Conversation, Exchange


def test_an_exchange_is_an_utterance_and_its_answer() -> None:
    """Heard, answered, idle again."""
    heard = Conversation().hear(1, "Hello.")
    assert not heard.is_idle
    answered = heard.answer("Good day.")
    assert answered == Conversation(exchanges=(Exchange("Hello.", "Good day."),))
    assert answered.is_idle


def test_utterances_are_answered_in_the_order_they_were_said() -> None:
    """The first one that waits is being answered."""
    talk = Conversation().hear(1, "One?").hear(2, "Two?").hear(3, "Three?")
    assert talk.waiting == ((1, "One?"), (2, "Two?"), (3, "Three?"))
    talk = talk.answer("First.").answer("Second.")
    assert talk.exchanges == (Exchange("One?", "First."), Exchange("Two?", "Second."))
    assert talk.waiting == ((3, "Three?"),)


def test_an_utterance_that_is_given_up_was_never_said() -> None:
    """The next one moves up."""
    talk = Conversation().hear(1, "One?").hear(2, "Two?").give_up().answer("Second.")
    assert talk == Conversation(exchanges=(Exchange("Two?", "Second."),))


def test_nothing_changes_in_place() -> None:
    """A conversation that was handed out stays as it was."""
    before = Conversation().hear(1, "One?")
    before.answer("First.")
    before.hear(2, "Two?")
    before.give_up()
    assert before == Conversation(waiting=((1, "One?"),))


def test_an_answer_to_nothing_is_our_own_mistake() -> None:
    """Nobody may answer when nobody spoke."""
    with pytest.raises(ValueError, match="unpack"):
        Conversation().answer("What?")
