"""A bijection of numbers that keeps words and digits in step, and the order of numbers that stand together."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from npc_engine.tuning.augment_pools import MONTHS, NUMBER_WORDS
from npc_engine.tuning.augment_text import TOKEN, YEAR

_GROUPS = (range(2, 10), range(10, 13), range(13, 20), range(20, 100, 10))
_WORD_VALUES = {"one": 1, "first": 1} | {word: value for value, pair in NUMBER_WORDS.items() for word in pair}
_UNSAFE = re.compile(
    r"\d[.,:/]\d|\d{5}|\b\d+(?:k|m|km|am|pm|%)|\b(?:ten|eleven|twelve|\w+teen|\w+ty) (?:hundred|thousand)|"
    r"\b(?:eighteen|nineteen|twenty)[- ](?:\w+ty|oh|\w+teen)\b|\b(?:million|billion)",
    re.IGNORECASE,
)
_CARDINALS = "|".join(pair[0] for pair in NUMBER_WORDS.values())
_NEAR_MONTH = re.compile(
    rf"\b([\w-]+) (?:of )?(?:{'|'.join(MONTHS)})\b|\b(?:{'|'.join(MONTHS)}) (?:the )?([\w-]+)", re.IGNORECASE
)
_TIED = re.compile(
    rf"\b((?:{_CARDINALS})(?:-\w+)?) "
    r"(?:minutes )?(?:past|to|hands|eyes|legs|feet|arms|ears|thirds|fifths|tenths|halves|sides)\b|"
    r"\b(\d+)(?:st|nd|rd|th)\b",
    re.IGNORECASE,
)
_IMPLIED = {
    2: "second seconds secondly both twice pair double couple twin twins two's twos",
    3: "thrice triple trio triplets thirds threes",
    4: "quarter quarters fours fourths",
    5: "fives fifths",
    6: "sixes",
    7: "sevens",
    8: "eights octave",
    9: "nines",
    10: "tens decade",
    12: "dozen dozens",
    20: "twenties score",
    30: "thirties",
    40: "forties",
    50: "fifties",
    60: "sixties",
    70: "seventies",
    80: "eighties",
    90: "nineties",
}
_IMPLIED_VALUES = {word: value for value, words in _IMPLIED.items() for word in words.split()}
_DRAWS = 12


@dataclass(frozen=True)
class NumberMap:
    """Parts of numbers (2-9, 10-12, 13-19, tens) → parts of the same kind."""

    parts: Mapping[int, int]

    def __call__(self, value: int) -> int:
        """The number that stands for a whole number, digit by digit as it would be spoken."""
        thousands, rest = divmod(value, 1000)
        hundreds, rest = divmod(rest, 100)
        new = self.parts.get(thousands, thousands) * 1000 + self.parts.get(hundreds, hundreds) * 100
        if rest < 20:
            return new + self.parts.get(rest, rest)
        return new + self.parts.get(rest - rest % 10, rest - rest % 10) + self.parts.get(rest % 10, rest % 10)

    @property
    def words(self) -> dict[str, str]:
        """Number word → number word, cardinals and ordinals."""
        return {
            old: new
            for value, mapped in self.parts.items()
            for old, new in zip(NUMBER_WORDS[value], NUMBER_WORDS[mapped], strict=True)
        }


def numbers(text: str) -> list[int]:
    """The whole numbers above one in a text, written in words or digits; years and the like count, too."""
    found: list[int] = []
    value, end, last = 0, -1, 0
    for match in TOKEN.finditer(text):
        token = match[0].lower()
        part = int(token) if token.isdecimal() and len(token) < 10 else _WORD_VALUES.get(token, 0)
        joins = bool(value) and text[end : match.start()] in {" ", "-", " and "} and not token.isdecimal()
        if joins and token == "hundred" and value < 100:
            value, last = value * 100, 100
        elif joins and token == "thousand":
            value, last = value * 1000, 1000
        elif joins and part and part < (10 if last in range(20, 100, 10) else last if last >= 100 else 0):
            value, last = value + part, part
        elif part:
            found.append(value)
            value = last = part
        else:
            if token == "and" and text[end : match.start()] == " ":
                continue  # perhaps within a number
            found.append(value)
            value = 0
        end = match.end()
    return [number for number in (*found, value) if number > 1]


def is_arithmetic(known: Iterable[str], replies: Iterable[str]) -> bool:
    """True if a reply names a number that no known text holds, or a text holds a sum."""
    values = [numbers(text) for text in known]
    stated = {value for found in values for value in found}
    if any(value not in stated for reply in replies for value in numbers(reply)):
        return True
    return any(_holds_sum(found) for found in values)


def _holds_sum(values: Sequence[int]) -> bool:
    distinct = set(values)
    return len(distinct) > 2 and any(a + b in distinct for a in distinct for b in distinct if a < b)


def draw_numbers(texts: Sequence[str], rng: random.Random) -> NumberMap | None:
    """A random map for a scene with these texts; None where none can be trusted to keep the scene true."""
    joined = "\n".join(texts)
    if _UNSAFE.search(joined):
        return None
    rows = [row for row in (numbers(text) for text in texts) if len(set(row)) > 1]
    days = [int(day) for day in re.findall(r"\bday (\d{1,4})\b", joined, re.IGNORECASE)]
    pinned = _pinned(joined)
    if len(set(days)) > 1:  # "yesterday" has to stay true
        pinned |= {part for day in days for part in _parts(day)}
    for _ in range(_DRAWS):
        candidate = _draw(pinned, rng)
        if all(_keeps_order(row, candidate) for row in rows):
            return candidate
    used = {part for text in texts for value in numbers(text) for part in _parts(value)}
    candidate = _draw_in_order(used, pinned, rng)
    return candidate if all(_keeps_order(row, candidate) for row in rows) else None


def _draw(pinned: set[int], rng: random.Random) -> NumberMap:
    parts: dict[int, int] = {}
    for group in _GROUPS:
        free = [value for value in group if value not in pinned]
        parts |= dict(zip(free, rng.sample(free, len(free)), strict=True))
    return NumberMap(parts)


def _draw_in_order(used: set[int], pinned: set[int], rng: random.Random) -> NumberMap:
    """Maps the parts that occur to others in the same order; a pinned part keeps its group as it is."""
    parts: dict[int, int] = {}
    for group in _GROUPS:
        mine = [value for value in group if value in used]
        others = [value for value in group if value not in used]
        if mine and not pinned.intersection(group):
            images = sorted(rng.sample(list(group), len(mine)))
            left = [value for value in group if value not in images]
            parts |= dict(zip(mine, images, strict=True)) | dict(zip(others, left, strict=True))
    return NumberMap(parts)


def _keeps_order(row: Sequence[int], mapped: NumberMap) -> bool:
    values = sorted({value for value in row if value < 10_000 and not YEAR.match(str(value))})
    images = [mapped(value) for value in values]
    return all(a < b for a, b in itertools.pairwise(images))


def _parts(value: int) -> set[int]:
    rest = value % 100
    low = {rest} if rest < 20 else {rest - rest % 10, rest % 10}
    return low | {value // 100 % 10, value // 1000 % 10}


def _pinned(text: str) -> set[int]:
    values = {_IMPLIED_VALUES[word] for word in re.findall(r"[a-z]+", text.lower()) if word in _IMPLIED_VALUES}
    for found in (*_NEAR_MONTH.finditer(text), *_TIED.finditer(text)):
        values.update(numbers(found[1] or found[2] or ""))
    return {part for value in values for part in _parts(value)}
