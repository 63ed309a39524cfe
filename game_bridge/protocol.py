"""One session as a state machine: frames in, events out. No sockets, no tasks, no clock::

        hello accepted              close sent or to be sent          socket gone
    AWAITING_HELLO ──────────▶ OPEN ──────────────────────────▶ CLOSING ──────▶ CLOSED
          └────────────────────────────────────────────────────────▲

The owner passes each frame to :meth:`Session.receive`, does what the events say in their order, and turns every message
it wants to send into a frame with :meth:`Session.encode`, which keeps the account of what is in flight.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from enum import Enum

from game_bridge.codec import Codec
from game_bridge.errors import DecodeError
from game_bridge.limits import Limits, TokenBucket
from game_bridge.messages import (
    PROTOCOL_VERSION,
    Advance,
    Cancel,
    Changed,
    ClientMessage,
    CloseCode,
    Error,
    ErrorCode,
    Hello,
    Patch,
    ReplyEnd,
    Say,
    ServerMessage,
    parse_client_message,
)

MAX_REASON_BYTES = 123  # RFC 6455, 5.5: a control frame carries 125 bytes, two of them the close code


class Phase(Enum):
    """Where a session is."""

    AWAITING_HELLO = "awaiting hello"
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"

    @property
    def successors(self) -> frozenset[Phase]:
        """The phases that may follow this one."""
        match self:
            case Phase.AWAITING_HELLO:
                return frozenset({Phase.OPEN, Phase.CLOSING, Phase.CLOSED})
            case Phase.OPEN:
                return frozenset({Phase.CLOSING, Phase.CLOSED})
            case Phase.CLOSING:
                return frozenset({Phase.CLOSED})
            case Phase.CLOSED:
                return frozenset()


@dataclass(frozen=True, slots=True)
class SendFrame:
    """Send this frame."""

    frame: str | bytes


@dataclass(frozen=True, slots=True)
class HandleRequest:
    """Act on this request and answer it. A :class:`Hello` comes first and once; it is answered by a welcome."""

    request: ClientMessage


@dataclass(frozen=True, slots=True)
class CloseSocket:
    """Send what is queued, then close with this code and reason. No event follows."""

    code: int
    reason: str


Event = SendFrame | HandleRequest | CloseSocket


def close_reason(text: str) -> str:
    """`text`, shortened to what a close frame can carry."""
    return text.encode()[:MAX_REASON_BYTES].decode(errors="ignore")


class Session:
    """The server's side of one session."""

    def __init__(self, codec: Codec, *, limits: Limits, token: str | None, now_s: float) -> None:
        self._codec = codec
        self._limits = limits
        self._token = token
        self._phase = Phase.AWAITING_HELLO
        self._bucket = TokenBucket(limits.messages_per_s, limits.message_burst, now_s)
        self._num_refused = 0  # by the rate limit, without one that was let through in between
        self._utterances: set[int] = set()
        self._changes: set[int] = set()

    @property
    def phase(self) -> Phase:
        return self._phase

    @property
    def num_utterances(self) -> int:
        """Replies that have not ended."""
        return len(self._utterances)

    @property
    def num_changes(self) -> int:
        """Patches and advances that were not answered."""
        return len(self._changes)

    def receive(self, frame: str | bytes, now_s: float) -> tuple[Event, ...]:
        """What to do about a frame that arrived at `now_s`. Never raises for what a client sends."""
        if self._phase not in (Phase.AWAITING_HELLO, Phase.OPEN):
            return ()  # frames that were under way when we closed
        if _num_bytes(frame) > self._limits.max_message_bytes:
            return self.close(CloseCode.TOO_BIG, f"a message has at most {self._limits.max_message_bytes} bytes")
        allowed = self._bucket.take(now_s)
        if allowed:
            self._num_refused = 0
        try:
            message = parse_client_message(self._codec.decode(frame))
        except DecodeError as error:
            if not allowed:
                return self._slow_down(error.request_id)
            refused = self._refuse(error.request_id, error.code, str(error))
            if self._phase is Phase.AWAITING_HELLO:
                return refused + self.close(CloseCode.HELLO_EXPECTED, "the first message must be a hello")
            return refused
        if not allowed:
            return self._slow_down(message.id)
        if self._phase is Phase.AWAITING_HELLO:
            return self._greet(message)
        return self._admit(message)

    def encode(self, message: ServerMessage) -> str | bytes:
        """The frame of a message. A request's last answer takes it out of what is in flight."""
        if isinstance(message, ReplyEnd | Changed | Error) and message.id is not None:
            self._utterances.discard(message.id)
            self._changes.discard(message.id)
        return self._codec.encode(message)

    def hello_timed_out(self) -> tuple[Event, ...]:
        """The client sent no hello in time."""
        return self.close(CloseCode.HELLO_TIMEOUT, f"no hello within {self._limits.hello_timeout_s:g} s")

    def close(self, code: int, reason: str) -> tuple[Event, ...]:
        """End the session. Nothing when it ends already."""
        if self._phase in (Phase.CLOSING, Phase.CLOSED):
            return ()
        self._enter(Phase.CLOSING)
        return (CloseSocket(code, close_reason(reason)),)

    def connection_lost(self) -> None:
        """The socket is gone. Idempotent."""
        if self._phase is not Phase.CLOSED:
            self._enter(Phase.CLOSED)

    def _greet(self, message: ClientMessage) -> tuple[Event, ...]:
        if not isinstance(message, Hello):
            text = f"the first message must be a hello, not {message.type}"
            refused = self._refuse(message.id, ErrorCode.HELLO_EXPECTED, text)
            return refused + self.close(CloseCode.HELLO_EXPECTED, text)
        if message.version != PROTOCOL_VERSION:
            text = f"protocol version {message.version} is not supported; this server speaks {PROTOCOL_VERSION}"
            refused = self._refuse(message.id, ErrorCode.BAD_VERSION, text)
            return refused + self.close(CloseCode.BAD_VERSION, text)
        if not self._token_matches(message.token):
            text = "the token is wrong" if message.token else "this server wants a token"
            refused = self._refuse(message.id, ErrorCode.BAD_TOKEN, text)
            return refused + self.close(CloseCode.BAD_TOKEN, text)
        self._enter(Phase.OPEN)
        return (HandleRequest(message),)

    def _token_matches(self, token: str | None) -> bool:
        if self._token is None:
            return True
        # In constant time: how long a refusal takes must not tell how much of a guess was right.
        return hmac.compare_digest(self._token.encode(), (token or "").encode())

    def _admit(self, message: ClientMessage) -> tuple[Event, ...]:
        if isinstance(message, Hello):
            return self._refuse(message.id, ErrorCode.UNEXPECTED_HELLO, "the session is open already")
        if isinstance(message, Cancel):
            return (HandleRequest(message),)
        if self._is_in_flight(message.id):
            text = f"id {message.id} belongs to a request that was not answered yet"
            return self._refuse(message.id, ErrorCode.DUPLICATE_ID, text)
        if isinstance(message, Say):
            if len(self._utterances) >= self._limits.max_utterances:
                text = f"at most {self._limits.max_utterances} replies at a time; wait for a reply_end or cancel one"
                return self._refuse(message.id, ErrorCode.TOO_MANY_REQUESTS, text)
            self._utterances.add(message.id)
        elif isinstance(message, Patch | Advance):
            if len(self._changes) >= self._limits.max_changes:
                text = f"at most {self._limits.max_changes} changes at a time; wait for a changed"
                return self._refuse(message.id, ErrorCode.TOO_MANY_REQUESTS, text)
            self._changes.add(message.id)
        return (HandleRequest(message),)

    def _slow_down(self, request_id: int | None) -> tuple[Event, ...]:
        self._num_refused += 1
        text = f"more than {self._limits.messages_per_s:g} messages a second"
        refused = self._refuse(request_id, ErrorCode.RATE_LIMITED, text)
        # Answering costs us, too: who goes on for a whole burst without a pause is not listening.
        if self._num_refused > self._limits.message_burst:
            return refused + self.close(CloseCode.RATE_LIMITED, text)
        return refused

    def _refuse(self, request_id: int | None, code: str, text: str) -> tuple[Event, ...]:
        # An error with the id of a running request would end that request at the client.
        known = None if request_id is not None and self._is_in_flight(request_id) else request_id
        return (SendFrame(self.encode(Error(id=known, code=code, message=text))),)

    def _is_in_flight(self, request_id: int) -> bool:
        return request_id in self._utterances or request_id in self._changes

    def _enter(self, phase: Phase) -> None:
        assert phase in self._phase.successors, f"{self._phase} is not followed by {phase}"
        self._phase = phase


def _num_bytes(frame: str | bytes) -> int:
    return len(frame) if isinstance(frame, bytes) else len(frame.encode(errors="surrogatepass"))
