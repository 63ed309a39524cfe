"""What counts as a message, and what a client is told when it doesn't."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from game_bridge import messages
from game_bridge.errors import DecodeError
from game_bridge.messages import CLIENT_MESSAGES, SERVER_MESSAGES, parse_client_message, parse_server_message
from npc_engine.config import SamplingParams
from npc_engine.runtime.reply import ReplyStats


def test_types_are_pinned() -> None:
    """Other clients have these names in their code."""
    assert list(CLIENT_MESSAGES) == ["hello", "list_npcs", "say", "cancel", "patch", "advance", "ping"]
    assert list(SERVER_MESSAGES) == [
        "welcome",
        "npcs",
        "reply_start",
        "reply_delta",
        "reply_end",
        "changed",
        "world_changed",
        "error",
        "pong",
    ]


def test_names_follow_the_engine() -> None:
    """Figures and sampling on the wire are called what they are called in the engine."""
    assert list(messages.StatsCard.model_fields) == [field.name for field in fields(ReplyStats)]
    assert list(messages.Sampling.model_fields) == [field.name for field in fields(SamplingParams)]


def test_unknown_fields_are_ignored() -> None:
    """A newer client may send more; it must not fail."""
    assert parse_client_message({"type": "ping", "id": 1, "colour": "red"}) == messages.Ping(id=1)


def test_whole_numbers_may_be_written_with_a_point() -> None:
    """JavaScript and Godot have one number type in JSON."""
    assert parse_client_message({"type": "advance", "id": 3.0, "minutes": 10.0}) == messages.Advance(id=3, minutes=10)


@pytest.mark.parametrize(
    ("message", "code", "request_id", "says"),
    [
        ({}, "bad_message", None, "'type'"),
        ({"type": 3, "id": 4}, "bad_message", 4, "'type'"),
        ({"type": "dance", "id": 4}, "unknown_type", 4, "'dance'; known are hello, list_npcs, say, cancel"),
        ({"type": "x\n" * 99, "id": 4}, "unknown_type", 4, "unknown message type"),
        ({"type": "say", "id": 4, "npc": "mira"}, "bad_message", 4, "say: text: Field required"),
        (
            {"type": "say", "id": 4, "npc": 1, "text": "hi"},
            "bad_message",
            4,
            "say: npc: Input should be a valid string",
        ),
        ({"type": "ping"}, "bad_message", None, "ping: id: Field required"),
        ({"type": "ping", "id": "1"}, "bad_message", None, "ping: id:"),
        ({"type": "ping", "id": True}, "bad_message", None, "ping: id:"),
        ({"type": "ping", "id": 0}, "bad_message", None, "ping: id:"),
        ({"type": "ping", "id": 1.5}, "bad_message", None, "ping: id:"),
        ({"type": "ping", "id": 2**53}, "bad_message", None, "ping: id:"),
        ({"type": "advance", "id": 1, "minutes": -5}, "bad_message", 1, "advance: minutes:"),
        ({"type": "patch", "id": 1, "operations": []}, "bad_message", 1, "patch: operations:"),
        ({"type": "patch", "id": 1, "operations": ["x"]}, "bad_message", 1, r"patch: operations\.0:"),
        (
            {"type": "say", "id": 1, "npc": "m", "text": "t", "sampling": {"top_p": 2}},
            "bad_message",
            1,
            r"say: sampling\.top_p:",
        ),
        (
            {"type": "hello", "id": 1, "version": 1, "player": "a\x00b"},
            "bad_message",
            1,
            "hello: player:",
        ),
    ],
)
def test_refusals_name_the_field(message: dict[str, Any], code: str, request_id: int | None, says: str) -> None:
    """A refusal carries its code, the request's id where there is one, and names type or field on one line."""
    with pytest.raises(DecodeError, match=says) as caught:
        parse_client_message(message)
    assert (caught.value.code, caught.value.request_id) == (code, request_id)
    assert "\n" not in str(caught.value)


def test_a_client_skips_what_only_newer_servers_send() -> None:
    """Message types may be added without a new version."""
    assert parse_server_message({"type": "fireworks", "colour": "red"}) is None


def test_sampling_overrides_only_what_it_sets() -> None:
    """What a client leaves out stays as the server has it, and None is not 0."""
    base = SamplingParams(temperature=0.7, top_p=0.9, max_tokens=50, seed=5)
    assert messages.Sampling().applied_to(base) == base
    assert messages.Sampling(temperature=0.0, seed=0).applied_to(base) == SamplingParams(
        temperature=0.0, top_p=0.9, max_tokens=50, seed=0
    )
    whole = SamplingParams(temperature=0.5, top_p=0.8, min_p=0.1, repetition_penalty=1.1, max_tokens=9, seed=3)
    assert messages.Sampling.of(whole).applied_to(base) == whole
