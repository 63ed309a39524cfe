"""The session as a state machine: no sockets, no event loop, time given by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from game_bridge import messages
from game_bridge.codec import CODECS
from game_bridge.limits import Limits, TokenBucket
from game_bridge.protocol import CloseSocket, Event, HandleRequest, Phase, SendFrame, Session, close_reason

JSON = CODECS["npc.v1.json"]
HELLO = {"type": "hello", "id": 1, "version": 1}


def session(limits: Limits | None = None, token: str | None = None) -> Session:
    return Session(JSON, limits=limits or Limits(), token=token, now_s=0.0)


def feed(target: Session, *sent: dict[str, Any], now_s: float = 0.0) -> tuple[Event, ...]:
    """Send messages and return the events of the last."""
    events: tuple[Event, ...] = ()
    for message in sent:
        events = target.receive(json.dumps(message), now_s)
    return events


def error(event: Event) -> tuple[int | None, str, str]:
    assert isinstance(event, SendFrame)
    fields = JSON.decode(event.frame)
    assert fields["type"] == "error"
    return fields["id"], fields["code"], fields["message"]


def changed(request_id: int) -> messages.Changed:
    return messages.Changed(id=request_id, tick=1, entities=(), num_changed_blocks=0)


def test_a_hello_opens_the_session() -> None:
    """The owner gets the hello to answer, and what follows is handed on."""
    target = session()
    assert target.phase is Phase.AWAITING_HELLO
    assert feed(target, HELLO) == (HandleRequest(messages.Hello(id=1, version=1)),)
    assert target.phase is Phase.OPEN
    assert feed(target, {"type": "ping", "id": 2}) == (HandleRequest(messages.Ping(id=2)),)


@pytest.mark.parametrize(
    ("first", "request_id", "code", "close_code"),
    [
        ({"type": "ping", "id": 5}, 5, "hello_expected", 4001),
        ({"type": "dance", "id": 5}, 5, "unknown_type", 4001),
        ({"type": "hello", "id": 5}, 5, "bad_message", 4001),
        ({"type": "hello", "id": 5, "version": 2}, 5, "bad_version", 4002),
        ({"type": "hello", "id": 5, "version": 1}, 5, "bad_token", 4003),
        ({"type": "hello", "id": 5, "version": 1, "token": ""}, 5, "bad_token", 4003),
        ({"type": "hello", "id": 5, "version": 1, "token": "open sesam"}, 5, "bad_token", 4003),
        ({"type": "hello", "id": 5, "version": 1, "token": "öpen sesame"}, 5, "bad_token", 4003),
    ],
)
def test_whoever_does_not_introduce_himself_is_refused(
    first: dict[str, Any], request_id: int, code: str, close_code: int
) -> None:
    """An error that says why, then a close with a code of its own; nothing reaches the engine."""
    target = session(token="open sesame")
    refusal, close = feed(target, first)
    assert error(refusal)[:2] == (request_id, code)
    assert isinstance(close, CloseSocket)
    assert close.code == close_code
    assert target.phase is Phase.CLOSING
    assert feed(target, {**HELLO, "token": "open sesame"}) == ()


def test_the_version_refusal_names_both_versions() -> None:
    """Who reads it knows which side to update."""
    refusal, _ = feed(session(), {**HELLO, "version": 3})
    assert error(refusal)[2] == "protocol version 3 is not supported; this server speaks 1"


def test_the_right_token_opens() -> None:
    """And a server without a token doesn't mind one."""
    assert isinstance(feed(session(token="open sesame"), {**HELLO, "token": "open sesame"})[0], HandleRequest)
    assert isinstance(feed(session(), {**HELLO, "token": "whatever"})[0], HandleRequest)


def test_a_second_hello_is_refused() -> None:
    """A session can't change its player."""
    target = session()
    (refusal,) = feed(target, HELLO, {**HELLO, "id": 2, "player": "eve"})
    assert error(refusal)[:2] == (2, "unexpected_hello")
    assert target.phase is Phase.OPEN


def test_garbage_after_the_hello_does_not_end_the_session() -> None:
    """One error; the session goes on."""
    target = session()
    feed(target, HELLO)
    (refusal,) = target.receive(b"\x00", 0.0)
    assert error(refusal)[:2] == (None, "bad_frame")
    assert feed(target, {"type": "ping", "id": 2}) == (HandleRequest(messages.Ping(id=2)),)


@pytest.mark.parametrize("fill", ["x", "é"])
def test_an_oversize_message_closes(fill: str) -> None:
    """The limit counts bytes, whatever the kind of frame."""
    target = session(Limits(max_message_bytes=100))
    feed(target, HELLO)
    (close,) = target.receive(fill * 101, 0.0)
    assert isinstance(close, CloseSocket)
    assert close.code == 1009
    assert target.receive(json.dumps(HELLO), 0.0) == ()


def test_utterances_are_limited_until_one_ends() -> None:
    """The third say is refused, and accepted again after the end of the first."""
    target = session(Limits(max_utterances=2))
    says = [{"type": "say", "id": i, "npc": "mira", "text": "hi"} for i in (2, 3, 4)]
    (refusal,) = feed(target, HELLO, *says)
    assert error(refusal)[:2] == (4, "too_many_requests")
    assert target.num_utterances == 2
    target.encode(messages.Error(id=2, code="unknown_name", message="no such NPC"))
    assert isinstance(feed(target, says[2])[0], HandleRequest)


def test_changes_are_limited_until_one_is_answered() -> None:
    """Patches and advances count together."""
    target = session(Limits(max_changes=2))
    patch = {"type": "patch", "operations": [{"op": "replace", "path": "/a", "value": 1}]}
    (refusal,) = feed(target, HELLO, {**patch, "id": 2}, {"type": "advance", "id": 3, "minutes": 1}, {**patch, "id": 4})
    assert error(refusal)[:2] == (4, "too_many_requests")
    target.encode(changed(3))
    assert isinstance(feed(target, {**patch, "id": 4})[0], HandleRequest)


def test_an_id_in_flight_cannot_be_taken_again() -> None:
    """The error carries no id: with one, the client would take it for the end of its running request."""
    target = session()
    say = {"type": "say", "id": 2, "npc": "mira", "text": "hi"}
    (refusal,) = feed(target, HELLO, say, say)
    request_id, code, text = error(refusal)
    assert (request_id, code) == (None, "duplicate_id")
    assert "id 2 " in text
    (refusal,) = feed(target, {"type": "say", "id": 2})
    assert error(refusal)[:2] == (None, "bad_message")
    assert target.num_utterances == 1


def test_a_cancel_shares_the_id_of_its_say() -> None:
    """It is handed on even when nothing runs under that id: the reply may just have ended."""
    target = session()
    cancel = {"type": "cancel", "id": 2}
    assert feed(target, HELLO, cancel) == (HandleRequest(messages.Cancel(id=2)),)
    say = {"type": "say", "id": 2, "npc": "mira", "text": "hi"}
    assert feed(target, say, cancel) == (HandleRequest(messages.Cancel(id=2)),)


def test_too_many_messages_a_second_are_refused_then_closed() -> None:
    """A burst passes; then one a time step; who never pauses is shown the door."""
    target = session(Limits(messages_per_s=10.0, message_burst=3))
    ping = {"type": "ping", "id": 9}
    assert isinstance(feed(target, HELLO, ping, ping)[0], HandleRequest)
    assert error(feed(target, ping)[0])[:2] == (9, "rate_limited")
    assert isinstance(feed(target, ping, now_s=0.1)[0], HandleRequest)
    for _ in range(3):
        assert len(feed(target, ping, now_s=0.1)) == 1
    refusal, close = feed(target, ping, now_s=0.1)
    assert error(refusal)[1] == "rate_limited"
    assert isinstance(close, CloseSocket)
    assert close.code == 4005


def test_undecodable_frames_count_for_the_rate() -> None:
    """Garbage is no way around the limit."""
    target = session(Limits(messages_per_s=1.0, message_burst=1))
    feed(target, HELLO)
    (refusal,) = target.receive("{", 0.0)
    assert error(refusal)[1] == "rate_limited"


def test_a_bucket_never_holds_more_than_its_burst() -> None:
    """A long pause buys one burst, and a clock that goes back gives nothing."""
    bucket = TokenBucket(rate=1.0, burst=2, now_s=0.0)
    assert [bucket.take(1000.0) for _ in range(3)] == [True, True, False]
    assert not bucket.take(500.0)


def test_closing_is_idempotent() -> None:
    """The first reason stands, and a lost connection ends everything."""
    target = session()
    assert target.hello_timed_out() == (CloseSocket(4004, "no hello within 10 s"),)
    assert target.close(1001, "bye") == ()
    target.connection_lost()
    target.connection_lost()
    assert target.phase is Phase.CLOSED
    assert target.close(1001, "bye") == ()


def test_phases_have_the_drawn_successors() -> None:
    """Closed is the end, nothing reopens, and every phase can be cut off."""
    assert Phase.CLOSED.successors == frozenset()
    for phase in Phase:
        assert Phase.AWAITING_HELLO not in phase.successors
        assert phase is Phase.CLOSED or Phase.CLOSED in phase.successors
    assert Phase.OPEN in Phase.AWAITING_HELLO.successors
    assert Phase.OPEN not in Phase.CLOSING.successors


def test_a_close_reason_fits_its_frame() -> None:
    """At most 123 bytes, cut between characters."""
    assert close_reason("é" * 100) == "é" * 61
    assert close_reason("short") == "short"


class InFlight(RuleBasedStateMachine):
    """What is in flight is exactly what was admitted and not ended, and never above the limits."""

    def __init__(self) -> None:
        super().__init__()
        self.limits = Limits(max_utterances=2, max_changes=3, message_burst=10**9)
        self.session = session(self.limits)
        feed(self.session, HELLO)
        self.says: set[int] = set()
        self.changes: set[int] = set()

    @rule(request_id=st.integers(1, 6))
    def say(self, request_id: int) -> None:
        (event,) = feed(self.session, {"type": "say", "id": request_id, "npc": "mira", "text": "hi"})
        free = request_id not in self.says | self.changes and len(self.says) < self.limits.max_utterances
        assert isinstance(event, HandleRequest) is free
        if free:
            self.says.add(request_id)

    @rule(request_id=st.integers(1, 6))
    def advance(self, request_id: int) -> None:
        (event,) = feed(self.session, {"type": "advance", "id": request_id, "minutes": 1})
        free = request_id not in self.says | self.changes and len(self.changes) < self.limits.max_changes
        assert isinstance(event, HandleRequest) is free
        if free:
            self.changes.add(request_id)

    @rule(junk=st.sampled_from(["{", '{"type":"dance","id":2}', '{"type":"say","id":3}', '{"type":"ping","id":4}']))
    def junk(self, junk: str) -> None:
        self.session.receive(junk, 0.0)

    @precondition(lambda self: self.says)
    @rule(data=st.data())
    def end_reply(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.says)))
        self.session.encode(messages.Error(id=request_id, code="engine_failed", message="x"))
        self.says.discard(request_id)

    @precondition(lambda self: self.changes)
    @rule(data=st.data())
    def end_change(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.changes)))
        self.session.encode(changed(request_id))
        self.changes.discard(request_id)

    @invariant()
    def accounts_agree(self) -> None:
        assert self.session.num_utterances == len(self.says)
        assert self.session.num_changes == len(self.changes)
        assert self.session.phase is Phase.OPEN


TestInFlight = InFlight.TestCase
TestInFlight.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
