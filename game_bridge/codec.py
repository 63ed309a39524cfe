"""Messages as frames: MessagePack in binary frames or JSON in text frames, chosen by subprotocol.

Both carry the same maps: null, booleans, whole numbers within 64 bits, finite numbers, text, lists, and maps whose keys
are text. Whatever else arrives (extension types, binary, NaN, a key twice, deep nesting) is a
:class:`~game_bridge.errors.DecodeError`, and decoding raises nothing else.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NoReturn, Protocol

import msgpack

from game_bridge.errors import DecodeError
from game_bridge.messages import ErrorCode, Message

MAX_DEPTH = 32
MAX_ITEMS = 16384


class Codec(Protocol):
    """Turns messages into frames and frames into maps."""

    @property
    def subprotocol(self) -> str: ...

    def encode(self, message: Message) -> str | bytes:
        """The frame of a message: text as str, binary as bytes."""
        ...

    def decode(self, frame: str | bytes) -> dict[str, Any]:
        """The map in a frame. Raises DecodeError, and nothing else, for anything that is not one."""
        ...


class MsgpackCodec:
    """``npc.v1.msgpack``: one MessagePack map in one binary frame."""

    subprotocol = "npc.v1.msgpack"

    def encode(self, message: Message) -> bytes:
        packed: bytes = msgpack.packb(message.model_dump())
        return packed

    def decode(self, frame: str | bytes) -> dict[str, Any]:
        if isinstance(frame, str):
            _refuse(f"{self.subprotocol} takes binary frames, this was a text frame")
        try:
            # msgpack reserves a list as soon as its header claims a length, and up to 1,024 of them may be nested. An
            # item takes a byte at least, so no honest header claims more than the frame has. Without MAX_ITEMS a
            # hostile frame of 256 KiB could reserve 2 GB; with it 128 MB, for the length of this call.
            max_items = min(MAX_ITEMS, len(frame))
            value = msgpack.unpackb(
                frame,
                raw=False,
                strict_map_key=True,
                object_pairs_hook=_unique,
                max_array_len=max_items,
                max_map_len=max_items,
            )
        except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
            _refuse(f"not MessagePack: {_one_line(error)}")
        return _checked(value)


class JsonCodec:
    """``npc.v1.json``: one JSON object in one text frame."""

    subprotocol = "npc.v1.json"

    def encode(self, message: Message) -> str:
        return json.dumps(message.model_dump(), ensure_ascii=False, allow_nan=False, separators=(",", ":"))

    def decode(self, frame: str | bytes) -> dict[str, Any]:
        if isinstance(frame, bytes):
            _refuse(f"{self.subprotocol} takes text frames, this was a binary frame")
        try:
            value = json.loads(frame, object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:
            _refuse(f"not JSON: {_one_line(error)}")
        return _checked(value)


# The order is the server's preference when a client offers both.
CODECS: Mapping[str, Codec] = MappingProxyType(
    {codec.subprotocol: codec for codec in (MsgpackCodec(), JsonCodec())},
)


def _refuse(message: str) -> NoReturn:
    raise DecodeError(ErrorCode.BAD_FRAME, message) from None


def _one_line(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return " ".join(text[:200].split())


def _unique(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    """A map without repeated keys: two readers that keep different ones would disagree on what was said."""
    result = dict(pairs)
    if len(result) != len(pairs):
        _refuse("a map has the same key twice")
    return result


def _checked(value: Any) -> dict[str, Any]:
    """`value` if it is a map of plain data, else DecodeError. Iterative: the depth is the sender's choice."""
    if not isinstance(value, dict):
        _refuse(f"a message is a map, not {_kind(value)}")
    stack: list[tuple[Any, int]] = [(value, 1)]
    while stack:
        item, depth = stack.pop()
        if isinstance(item, dict | list):
            if depth > MAX_DEPTH:
                _refuse(f"nested deeper than {MAX_DEPTH}")
            if len(item) > MAX_ITEMS:
                _refuse(f"more than {MAX_ITEMS} items in one list or map")
            if isinstance(item, dict):
                for key in item:
                    _check_scalar(key)
                    if not isinstance(key, str):
                        _refuse(f"a key is {_kind(key)}, not text")
                item = list(item.values())
            stack.extend((child, depth + 1) for child in item)
        else:
            _check_scalar(item)
    return value


def _check_scalar(value: Any) -> None:
    match value:
        case None | bool():
            return
        case str():
            # JSON can escape half of a surrogate pair; no UTF-8 encoder downstream could write it.
            if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
                _refuse("text with an unpaired surrogate")
        case int():
            if not -(2**63) <= value < 2**64:
                _refuse("a whole number beyond 64 bits")
        case float():
            if not math.isfinite(value):
                _refuse("a number that is not finite")
        case _:
            _refuse(f"{_kind(value)} is not allowed in a message")


def _kind(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "text"
        case list():
            return "a list"
        case bytes():
            return "binary data"
        case _:
            return "an extension type"
