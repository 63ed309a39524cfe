"""Frames to maps and back, and everything that must not get through."""

from __future__ import annotations

import json
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from game_bridge import messages
from game_bridge.codec import CODECS, MAX_DEPTH, MAX_ITEMS, Codec, JsonCodec, MsgpackCodec
from game_bridge.errors import DecodeError
from game_bridge.messages import CLIENT_MESSAGES, parse_client_message, parse_server_message

MSGPACK, JSON = MsgpackCodec(), JsonCodec()

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
# The first example builds hypothesis' table of characters, which is slow on a busy machine.
FUZZ = settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
FIELDS = sorted({field for message in CLIENT_MESSAGES.values() for field in message.model_fields} - {"type"})
# What a client may get wrong: nearly a message.
NEAR_MESSAGES = st.fixed_dictionaries(
    {"type": st.sampled_from([*CLIENT_MESSAGES, "dance", 3, None])}, optional=dict.fromkeys(FIELDS, SCALARS | VALUES)
)

HELLO = messages.Hello(id=1, version=1, token="s\u00e9same", client="test", player="Ana")
END = messages.ReplyEnd(
    id=9,
    npc="mira",
    speech="Aye \U0001f37a",
    emotion=None,
    actions=(messages.ActionCard(name="pour", arguments={"drink": "ale", "cups": 2, "hot": False, "price": 1.5}),),
    finish_reason="stop",
    stats=messages.StatsCard(
        ttft_ms=3.25, total_ms=9.0, num_prompt_tokens=5, num_cached_tokens=4, num_encoded_tokens=1, num_reply_tokens=2
    ),
)


@pytest.mark.parametrize("codec", CODECS.values(), ids=list(CODECS))
def test_a_message_survives_the_round_trip(codec: Any) -> None:
    """What one side encodes, the other side parses to an equal message."""
    assert parse_client_message(codec.decode(codec.encode(HELLO))) == HELLO
    assert parse_server_message(codec.decode(codec.encode(END))) == END


def test_subprotocols_are_pinned() -> None:
    """Other clients have these names in their code; MessagePack is preferred."""
    assert list(CODECS) == ["npc.v1.msgpack", "npc.v1.json"]
    assert isinstance(MSGPACK.encode(HELLO), bytes)
    assert isinstance(JSON.encode(HELLO), str)


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        ("{}", "binary frames"),
        (b"", "not MessagePack"),
        (b"\xc1", "not MessagePack"),
        (b"\x80\x80", "not MessagePack"),
        (b"\x91" * 100_000 + b"\xc0", "not MessagePack"),
        (b"\xdd\xff\xff\xff\xff", "not MessagePack"),
        (b"\xdf\xff\xff\xff\xff", "not MessagePack"),
        (b"\xdb\xff\xff\xff\xff", "not MessagePack"),
        (b"\xc6\xff\xff\xff\xff", "not MessagePack"),
        (b"\xdd\x00\x00\x13\x88" * 1000, "not MessagePack"),
        (b"\x81\xa1a\xa1\xff", "not MessagePack"),
        (b"\x81\x01\x02", "not MessagePack"),
        (b"\x81\x91\x01\x02", "not MessagePack"),
        (b"\x81\xc4\x01k\x02", "binary data"),
        (b"\x81\xa1a\xc4\x01k", "binary data"),
        (b"\x82\xa1a\x01\xa1a\x02", "same key twice"),
        (b"\x81\xa1a\xc7\x05\x01abcde", "extension type"),
        (b"\x81\xa1a\xd6\xff\x00\x00\x00\x01", "extension type"),
        (b"\x81\xa1a\xc7\x03\xffabc", "not MessagePack"),
        (b"\x81\xa1a\xcb\x7f\xf8\0\0\0\0\0\0", "not finite"),
        (b"\x81\xa1a\xca\x7f\x80\0\0", "not finite"),
        (b"\x90", "a message is a map, not a list"),
        (b"\xc0", "a message is a map, not null"),
        (b"\x81\xa1a" + b"\x91" * MAX_DEPTH + b"\xc0", f"deeper than {MAX_DEPTH}"),
    ],
)
def test_hostile_msgpack_is_refused(frame: str | bytes, says: str) -> None:
    """Depth, sizes, extension types, NaN, keys twice or not text, broken UTF-8: one error, one line."""
    with pytest.raises(DecodeError, match=says) as caught:
        MSGPACK.decode(frame)
    assert caught.value.code == "bad_frame"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (b"{}", "text frames"),
        ("", "not JSON"),
        ("{", "not JSON"),
        ("{} {}", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"a":' * 100_000, "not JSON"),
        ('{"a": ' + "9" * 5000 + "}", "not JSON"),
        ('{"a": 1, "a": 2}', "same key twice"),
        ('{"a": {"b": 1, "b": 1}}', "same key twice"),
        ('{"a": NaN}', "not finite"),
        ('{"a": -Infinity}', "not finite"),
        ('{"a": 1e999}', "not finite"),
        ('{"a": 18446744073709551616}', "64 bits"),
        ('{"a": "\\ud800"}', "surrogate"),
        ('{"\\udfff": 1}', "surrogate"),
        ("[]", "a message is a map, not a list"),
        ('"hello"', "a message is a map, not text"),
        ("1.5", "a message is a map, not a number"),
        ("true", "a message is a map, not a boolean"),
        ('{"a": ' + "[" * MAX_DEPTH + "]" * MAX_DEPTH + "}", f"deeper than {MAX_DEPTH}"),
        (json.dumps({"a": [0] * (MAX_ITEMS + 1)}), f"more than {MAX_ITEMS} items"),
    ],
)
def test_hostile_json_is_refused(frame: str | bytes, says: str) -> None:
    """The same for JSON, with what only JSON can do: huge numbers and halves of surrogate pairs."""
    with pytest.raises(DecodeError, match=says) as caught:
        JSON.decode(frame)
    assert caught.value.code == "bad_frame"
    assert "\n" not in str(caught.value)


def test_the_depth_limit_is_exact() -> None:
    """The deepest allowed nesting passes in both codecs."""
    value: Any = []
    for _ in range(MAX_DEPTH - 2):
        value = [value]
    tree = {"a": value}
    assert JSON.decode(json.dumps(tree)) == tree
    assert MSGPACK.decode(msgpack.packb(tree)) == tree


@FUZZ
@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), VALUES))
def test_plain_data_passes_unchanged(tree: dict[str, Any]) -> None:
    """Every map of plain data arrives as it was sent."""
    assert MSGPACK.decode(msgpack.packb(tree)) == tree
    assert JSON.decode(json.dumps(tree)) == tree


def outcome(codec: Codec, frame: str | bytes) -> messages.ClientMessage | DecodeError:
    """What becomes of a frame; any other exception fails the test."""
    try:
        return parse_client_message(codec.decode(frame))
    except DecodeError as error:
        return error


def check_answerable(result: messages.ClientMessage | DecodeError) -> None:
    """A refusal has a code of the protocol, is one line, and can be sent in both codecs."""
    if isinstance(result, DecodeError):
        assert result.code in {"bad_frame", "bad_message", "unknown_type"}
        assert "\n" not in str(result)
        answer = messages.Error(id=result.request_id, code=result.code, message=str(result))
        for codec in (JSON, MSGPACK):
            assert parse_server_message(codec.decode(codec.encode(answer))) == answer


@FUZZ
@given(st.binary(max_size=400))
@example(b"\xc7\x0c\xff\xff\xff\xff\xff\x00\x00\x00\x00\x00\x00\x00\x00")
def test_random_bytes_raise_nothing_else(frame: bytes) -> None:
    """The msgpack decoder and the parser behind it raise DecodeError or return."""
    check_answerable(outcome(MSGPACK, frame))


@FUZZ
@given(st.text(max_size=200) | st.binary(max_size=20))
def test_random_text_raises_nothing_else(frame: str | bytes) -> None:
    """The JSON decoder and the parser behind it raise DecodeError or return."""
    check_answerable(outcome(JSON, frame))


@FUZZ
@given(NEAR_MESSAGES)
def test_near_messages_raise_nothing_else(fields: dict[str, Any]) -> None:
    """Maps that look like messages are parsed or refused, and mean the same in both codecs."""
    in_msgpack, in_json = outcome(MSGPACK, msgpack.packb(fields)), outcome(JSON, json.dumps(fields))
    check_answerable(in_msgpack)
    if isinstance(in_msgpack, DecodeError):
        assert str(in_json) == str(in_msgpack)
    else:
        assert in_json == in_msgpack


@FUZZ
@given(st.binary(min_size=1, max_size=60), st.integers(0, 200))
def test_damaged_frames_raise_nothing_else(noise: bytes, at: int) -> None:
    """A valid frame with bytes overwritten somewhere is parsed or refused."""
    frame = bytearray(MSGPACK.encode(HELLO))
    at %= len(frame)
    frame[at : at + len(noise)] = noise
    check_answerable(outcome(MSGPACK, bytes(frame)))
