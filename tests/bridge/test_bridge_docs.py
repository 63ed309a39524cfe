"""docs/protocol.md and the code say the same."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from game_bridge import messages
from game_bridge.codec import CODECS, MAX_DEPTH, MAX_ITEMS
from game_bridge.limits import Limits
from game_bridge.messages import (
    CLIENT_MESSAGES,
    SERVER_MESSAGES,
    CloseCode,
    ErrorCode,
    parse_client_message,
    parse_server_message,
)

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")
EXAMPLES = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)]
ALL_MESSAGES = {**CLIENT_MESSAGES, **SERVER_MESSAGES}


def section(heading: str) -> str:
    """The text below a heading, up to the next one of any level."""
    match = re.search(rf"^##+ {re.escape(heading)}\n(.*?)(?=^##+ |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert match is not None, f"docs/protocol.md has no section {heading}"
    return match[1]


def parts(model: type[BaseModel]) -> set[type[BaseModel]]:
    """The messages nested in a message."""
    return {
        part
        for part in vars(messages).values()
        if isinstance(part, type)
        and issubclass(part, messages.Message)
        and any(re.search(rf"\b{part.__name__}\b", str(field.annotation)) for field in model.model_fields.values())
    }


@pytest.mark.parametrize("name", ALL_MESSAGES)
def test_every_message_and_field_is_described(name: str) -> None:
    """Each message has a section, and each of its fields a place in it."""
    model = ALL_MESSAGES[name]
    text = section(f"`{name}`")
    fields = set(model.model_fields) - {"type"}
    for part in parts(model) - ({messages.NpcCard} if name == "welcome" else set()):  # "as in npcs"
        fields |= set(part.model_fields)
    assert {field for field in fields if f"`{field}`" not in text} == set()


@pytest.mark.parametrize("name", ALL_MESSAGES)
def test_every_section_describes_no_more_than_there_is(name: str) -> None:
    """A field in a table exists in the message or in a part of it."""
    model = ALL_MESSAGES[name]
    known = set(model.model_fields) | {field for part in parts(model) for field in part.model_fields}
    assert set(re.findall(r"^\| `(\w+)` \|", section(f"`{name}`"), re.MULTILINE)) <= known


@pytest.mark.parametrize("example", EXAMPLES, ids=[example["type"] for example in EXAMPLES])
def test_every_example_is_a_message(example: dict[str, object]) -> None:
    """It validates, and sets every field of its message and no other."""
    parse = parse_client_message if example["type"] in CLIENT_MESSAGES else parse_server_message
    message = parse(example)
    assert message is not None
    assert set(example) == set(type(message).model_fields)


def test_every_message_has_an_example() -> None:
    assert {example["type"] for example in EXAMPLES} == set(ALL_MESSAGES)


def test_every_code_and_limit_is_listed() -> None:
    """Error codes, close codes, subprotocols and defaults."""
    listed = re.findall(r"^\| `(\w+)` \|", section("Errors"), re.MULTILINE)[1:]  # without the head
    assert listed == [code.value for code in ErrorCode]
    listed = re.findall(r"^\| (\d{4}) \|", section("Close codes"), re.MULTILINE)
    assert listed == [str(code.value) for code in CloseCode]
    told = list(messages.LimitsCard.model_fields)
    limits = Limits()
    listed = re.findall(r"^\| `(\w+)` \| (\d+)", section("Limits"), re.MULTILINE)
    assert listed == [(name, str(int(getattr(limits, name)))) for name in told]
    assert all(f"`{name}`" in section("Connection") for name in CODECS)
    assert f"at most {MAX_DEPTH} levels" in section("Connection")
    assert f"at most {MAX_ITEMS:,} items" in section("Connection")
    assert f"{messages.MAX_ADVANCE_MINUTES:,}" in section("`advance`")
    assert f"to {messages.MAX_REPLY_TOKENS}" in section("`say`")
