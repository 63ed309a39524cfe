"""From a token's spelling in ``tokenizer.json`` to the bytes it stands for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

_BYTE_TOKEN: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE: Final = "▁"


def _byte_of_character() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 stands for itself, the other 68 bytes for U+0100 onwards, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTE_OF_CHARACTER: Final = _byte_of_character()


def byte_level(token: str) -> bytes:
    """The bytes of a byte-level BPE token (GPT-2, Llama 3, Qwen, SmolLM)."""
    try:
        return bytes([_BYTE_OF_CHARACTER[character] for character in token])
    except KeyError:
        return token.encode()  # an added token, spelt as it is


def sentencepiece(token: str) -> bytes:
    """The bytes of a SentencePiece-style BPE token (Llama 2, Mistral): ``▁`` is a space, ``<0xE2>`` is a byte."""
    byte = _BYTE_TOKEN.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace(_SPACE, " ").encode()


def components(part: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """The steps of a normalizer, pre-tokenizer or decoder of ``tokenizer.json``, those inside sequences included."""
    if part is None:
        return
    nested = part.get("normalizers") or part.get("pretokenizers") or part.get("decoders")
    if nested is None:
        yield part
        return
    for step in nested:
        yield from components(step)
