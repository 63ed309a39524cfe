"""Who knows a fact."""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

from pydantic import PlainSerializer, PlainValidator

from npc_engine.world.entities import KEY_PATTERN

PLACE_PREFIX: Final = "place:"
_MEMBER = re.compile(rf"(?:{PLACE_PREFIX})?{KEY_PATTERN}")


def _parse(value: object) -> Literal["everyone"] | tuple[str, ...]:
    if value == "everyone":
        return "everyone"
    if isinstance(value, str) or not isinstance(value, list | tuple):
        raise ValueError('must be "everyone" or a list of character ids and place:<id> entries')
    for member in value:
        if not isinstance(member, str) or not _MEMBER.fullmatch(member):
            raise ValueError(f"{member!r} is neither a character id nor place:<id>")
    return tuple(value)


def _dump(value: Literal["everyone"] | tuple[str, ...]) -> str | list[str]:
    return value if isinstance(value, str) else list(value)


Audience = Annotated[Literal["everyone"] | tuple[str, ...], PlainValidator(_parse), PlainSerializer(_dump)]
"""``"everyone"``, or members: a character's key, or ``place:<key>`` for all whose home that place is."""
