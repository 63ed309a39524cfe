"""Every message of the protocol, as data. `docs/protocol.md` describes them for authors of other clients.

A message is a map whose ``type`` names it. Unknown fields are ignored, so that fields can be added without a new
protocol version; new fields carry defaults for the same reason. Types are strict ("3" is not 3), except that a whole
number may arrive as 3.0, because JavaScript and Godot have one number type in JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum, StrEnum
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict, ValidationError

from game_bridge.errors import DecodeError
from npc_engine.config import SamplingParams

PROTOCOL_VERSION = 1
MAX_NAME_LENGTH = 64
MAX_REPLY_TOKENS = 1024
MAX_ADVANCE_MINUTES = 366 * 24 * 60


class ErrorCode(StrEnum):
    """What an ``error`` message is about."""

    BAD_FRAME = "bad_frame"  # not MessagePack or JSON of this protocol
    UNKNOWN_TYPE = "unknown_type"
    BAD_MESSAGE = "bad_message"  # a field is missing or has a wrong type or value
    HELLO_EXPECTED = "hello_expected"
    UNEXPECTED_HELLO = "unexpected_hello"
    BAD_VERSION = "bad_version"
    BAD_TOKEN = "bad_token"
    RATE_LIMITED = "rate_limited"
    TOO_MANY_REQUESTS = "too_many_requests"  # too many utterances or changes at the same time
    DUPLICATE_ID = "duplicate_id"
    UNKNOWN_NAME = "unknown_name"
    BAD_UTTERANCE = "bad_utterance"
    BAD_PATCH = "bad_patch"
    REFUSED = "refused"  # any other mistake that a user can mend
    ENGINE_FAILED = "engine_failed"


class CloseCode(IntEnum):
    """Close codes of the WebSocket. Below 4000 they mean what RFC 6455 and IANA's registry say."""

    NORMAL = 1000
    GOING_AWAY = 1001
    TOO_BIG = 1009
    INTERNAL_ERROR = 1011
    SERVICE_RESTART = 1012
    HELLO_EXPECTED = 4001
    BAD_VERSION = 4002
    BAD_TOKEN = 4003
    HELLO_TIMEOUT = 4004
    RATE_LIMITED = 4005


class Message(BaseModel):
    """Base of every message and part of one."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


T = TypeVar("T")
Int = Annotated[int, BeforeValidator(_whole)]
Items = Annotated[tuple[T, ...], Strict(False)]  # a list on the wire
RequestId = Annotated[Int, Field(ge=1, le=2**53 - 1)]  # exact in a JavaScript number
Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME_LENGTH, pattern=r"^[^\x00-\x1f\x7f]+$")]
Tick = Annotated[Int, Field(ge=0)]
Count = Annotated[Int, Field(ge=0)]


# --- client to server


class Sampling(Message):
    """Overrides of the server's sampling; what is None stays as the server has it."""

    temperature: Annotated[float, Field(ge=0, le=5)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    max_tokens: Annotated[Int, Field(ge=1, le=MAX_REPLY_TOKENS)] | None = None
    seed: Annotated[Int, Field(ge=0, le=2**53 - 1)] | None = None

    @classmethod
    def of(cls, params: SamplingParams) -> Sampling:
        """All of `params` as overrides."""
        return cls.model_validate({name: getattr(params, name) for name in cls.model_fields})

    def applied_to(self, base: SamplingParams) -> SamplingParams:
        """`base` with what is set here."""
        return SamplingParams(
            temperature=base.temperature if self.temperature is None else self.temperature,
            top_p=base.top_p if self.top_p is None else self.top_p,
            min_p=base.min_p if self.min_p is None else self.min_p,
            repetition_penalty=(
                base.repetition_penalty if self.repetition_penalty is None else self.repetition_penalty
            ),
            max_tokens=base.max_tokens if self.max_tokens is None else self.max_tokens,
            seed=base.seed if self.seed is None else self.seed,
        )


class Hello(Message):
    """The first message of a client; answered by ``welcome``."""

    type: Literal["hello"] = "hello"
    id: RequestId
    version: Int
    token: str | None = None
    client: Annotated[str, Field(max_length=MAX_NAME_LENGTH)] = ""
    player: Name = "player"


class ListNpcs(Message):
    """Answered by ``npcs``."""

    type: Literal["list_npcs"] = "list_npcs"
    id: RequestId


class Say(Message):
    """The player speaks to an NPC; answered by ``reply_start``, any number of ``reply_delta``, then ``reply_end``."""

    type: Literal["say"] = "say"
    id: RequestId
    npc: str
    text: str
    sampling: Sampling | None = None


class Cancel(Message):
    """Stop the reply to the ``say`` of this id; its ``reply_end`` follows. Nothing happens if it has ended."""

    type: Literal["cancel"] = "cancel"
    id: RequestId


class Patch(Message):
    """Change the world by a JSON Patch (RFC 6902), as a whole or not at all; answered by ``changed``."""

    type: Literal["patch"] = "patch"
    id: RequestId
    operations: Annotated[list[dict[str, Any]], Field(min_length=1)]


class Advance(Message):
    """Let game time pass; answered by ``changed``."""

    type: Literal["advance"] = "advance"
    id: RequestId
    minutes: Annotated[Int, Field(ge=1, le=MAX_ADVANCE_MINUTES)]


class Ping(Message):
    """Answered by ``pong``."""

    type: Literal["ping"] = "ping"
    id: RequestId


# --- server to client


class WorldCard(Message):
    """The world that is loaded."""

    id: str
    title: str


class ModelCard(Message):
    """The model that speaks."""

    name: str
    fingerprint: str
    device: str
    dtype: str


class NpcCard(Message):
    """An NPC as a game lists it."""

    id: str
    name: str
    role: str
    place: str


class LimitsCard(Message):
    """What this connection may ask; see :class:`game_bridge.limits.Limits`."""

    max_message_bytes: Int
    max_utterances: Int
    max_changes: Int
    messages_per_s: float
    message_burst: Int


class Welcome(Message):
    """The first message of the server: the session is open."""

    type: Literal["welcome"] = "welcome"
    id: RequestId
    version: Int
    session: str
    tick: Tick
    world: WorldCard
    model: ModelCard
    npcs: Items[NpcCard]
    limits: LimitsCard


class Npcs(Message):
    """Who can be spoken to, and where they are now."""

    type: Literal["npcs"] = "npcs"
    id: RequestId
    npcs: Items[NpcCard]


class ReplyStart(Message):
    """The utterance was accepted and the NPC thinks."""

    type: Literal["reply_start"] = "reply_start"
    id: RequestId
    npc: str


class ReplyDelta(Message):
    """The next piece of speech; `seq` counts from 0. `ends_sentence`: `text` completes a sentence."""

    type: Literal["reply_delta"] = "reply_delta"
    id: RequestId
    seq: Count
    text: str
    ends_sentence: bool


class ActionCard(Message):
    """A game action that the NPC takes with its reply."""

    name: str
    arguments: dict[str, str | int | float | bool]


class StatsCard(Message):
    """Figures of one reply; see :class:`npc_engine.runtime.reply.ReplyStats`."""

    ttft_ms: float
    total_ms: float
    num_prompt_tokens: Count
    num_cached_tokens: Count
    num_encoded_tokens: Count
    num_reply_tokens: Count


class ReplyEnd(Message):
    """The whole reply. `finish_reason` is ``stop``, ``length`` or ``cancelled``; more may come."""

    type: Literal["reply_end"] = "reply_end"
    id: RequestId
    npc: str
    speech: str
    emotion: str | None
    actions: Items[ActionCard]
    finish_reason: str
    stats: StatsCard


class Changed(Message):
    """What this client's patch or advance did."""

    type: Literal["changed"] = "changed"
    id: RequestId
    tick: Tick
    entities: Items[str]
    num_changed_blocks: Count


class WorldChanged(Message):
    """The world changed, by whomever. Several changes may arrive as one; `tick` is the last."""

    type: Literal["world_changed"] = "world_changed"
    tick: Tick
    entities: Items[str]
    num_changed_blocks: Count


class Error(Message):
    """A request was refused, or failed. `id` is None where it could not be told or belongs to a running request."""

    type: Literal["error"] = "error"
    id: RequestId | None
    code: str  # an ErrorCode; a newer server may know more of them
    message: str


class Pong(Message):
    """The session is alive."""

    type: Literal["pong"] = "pong"
    id: RequestId


ClientMessage = Hello | ListNpcs | Say | Cancel | Patch | Advance | Ping
ServerMessage = Welcome | Npcs | ReplyStart | ReplyDelta | ReplyEnd | Changed | WorldChanged | Error | Pong


def _by_type(union: Any) -> Mapping[str, type[Any]]:
    return MappingProxyType({member.model_fields["type"].default: member for member in get_args(union)})


CLIENT_MESSAGES: Mapping[str, type[ClientMessage]] = _by_type(ClientMessage)
SERVER_MESSAGES: Mapping[str, type[ServerMessage]] = _by_type(ServerMessage)


def parse_client_message(fields: Mapping[str, Any]) -> ClientMessage:
    """A decoded map as a message of a client.

    Raises:
        DecodeError: `unknown_type` names the type and lists those that exist, `bad_message` names the fields.
    """
    return _parse(fields, CLIENT_MESSAGES)


def parse_server_message(fields: Mapping[str, Any]) -> ServerMessage | None:
    """A decoded map as a message of a server; None for a type that only a newer server knows.

    Raises:
        DecodeError: `bad_message` names the fields.
    """
    if isinstance(fields.get("type"), str) and fields["type"] not in SERVER_MESSAGES:
        return None
    return _parse(fields, SERVER_MESSAGES)


M = TypeVar("M", bound=Message)


def _parse(fields: Mapping[str, Any], known: Mapping[str, type[M]]) -> M:
    request_id = _request_id(fields)
    name = fields.get("type")
    if not isinstance(name, str):
        raise DecodeError(ErrorCode.BAD_MESSAGE, "type: a message needs a 'type' that is a string", request_id)
    if name not in known:
        # !a: printable and on one line, whatever a client sends
        text = f"unknown message type {name[:40]!a}; known are {', '.join(known)}"
        raise DecodeError(ErrorCode.UNKNOWN_TYPE, text, request_id)
    try:
        return known[name].model_validate(fields)
    except ValidationError as error:
        raise DecodeError(ErrorCode.BAD_MESSAGE, f"{name}: {explain(error)}", request_id) from None


def _request_id(fields: Mapping[str, Any]) -> int | None:
    value = _whole(fields.get("id"))
    is_id = isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 2**53
    return value if is_id else None  # type: ignore[return-value]


def explain(error: ValidationError) -> str:
    """Which fields are wrong, and why, on one line."""
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    shown = [f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}" for problem in problems[:3]]
    more = len(problems) - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more else "")
