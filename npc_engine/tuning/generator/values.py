"""Values that fill templates: names, prices, things, each with the pattern by which a reply is recognized."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Final

from npc_engine.tuning.generator.numbers import draw_hour, draw_number, number_pattern

_SEPARATOR: Final = ";"
_SLOT: Final = re.compile(r"\{(\w+)\}")
_ARTICLE: Final = re.compile(r"^(?:the|a|an) ", re.IGNORECASE)
_AN: Final = re.compile(r"\b([Aa]) (?=[aeiou])(?!one\b|one-|uni|use|eu)")
_TWICE: Final = re.compile(r"\b(a|an|the) the (?=\w)", re.IGNORECASE)
_PLURAL_POOLS: Final = frozenset({"faction", "team"})
_MAX_TRIES: Final = 40

Pools = Mapping[str, tuple[str, ...]]


class PoolExhaustedError(Exception):
    """A pool holds no further value that differs from those already drawn."""


@dataclass(frozen=True, slots=True)
class Value:
    """`accept` is a regular expression that a text naming this value matches."""

    text: str
    accept: str
    pronoun: str = "it"

    @property
    def is_person(self) -> bool:
        return self.pronoun in ("he", "she")

    def is_named_in(self, text: str) -> bool:
        return re.search(self.accept, text, re.IGNORECASE) is not None

    def clashes(self, other: Value) -> bool:
        """True if a reply that names one would pass for the other."""
        return self.is_named_in(other.text) or other.is_named_in(self.text)


def parse_pools(text: str) -> dict[str, tuple[str, ...]]:
    """Lines of ``name: entry; entry``; a name that comes again is continued."""
    pools: dict[str, tuple[str, ...]] = {}
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        name, _, entries = line.partition(":")
        drawn = tuple(entry.strip() for entry in entries.split(_SEPARATOR) if entry.strip())
        pools[name.strip()] = pools.get(name.strip(), ()) + drawn
    return pools


def read_data(name: str) -> str:
    """A text file of this package's data."""
    return (resources.files("npc_engine.tuning.generator") / "data" / name).read_text(encoding="utf-8")


@cache
def shared_pools() -> dict[str, tuple[str, ...]]:
    """The pools that all domains draw from."""
    return parse_pools(read_data("pools.txt"))


def _tidy(text: str) -> str:
    """One article where a template and its value both bring one, and "an" before a vowel."""
    return _AN.sub(r"\1n ", _TWICE.sub(r"\1 ", text))


@dataclass(slots=True)
class Drawer:
    """Draws values for one scene. Money is the same throughout a scene, and no person comes twice."""

    rng: random.Random
    pools: Pools
    currency: str = ""
    people: list[Value] = field(default_factory=list)

    def draw(self, pool: str) -> Value:
        match pool:
            case "person":
                return self.draw_person()
            case "price":
                number = draw_number(self.rng, 2, 60)
                return Value(f"{number} {self.currency}", number_pattern(number))
            case "n" | "big" | "age" | "year":
                low, high = {"n": (2, 24), "big": (25, 900), "age": (16, 90), "year": (1020, 2390)}[pool]
                number = draw_number(self.rng, low, high)
                return Value(number, number_pattern(number))
            case "hour":
                text, pattern = draw_hour(self.rng)
                return Value(text, pattern)
            case "town":
                text = self._pick("town.start") + self._pick("town.end")
                return Value(text, rf"\b{re.escape(text)}\b")
            case _:
                return self._draw_entry(pool)

    def draw_apart(self, pool: str, others: Iterable[Value]) -> Value:
        """One that no reply can confuse with the others. Raises PoolExhaustedError if none is found."""
        taken = tuple(others)
        for _ in range(_MAX_TRIES):
            value = self.draw(pool)
            if not any(value.clashes(other) for other in taken):
                return value
        raise PoolExhaustedError(pool)

    def draw_person(self) -> Value:
        for _ in range(_MAX_TRIES):
            value = self._compose_person()
            if not any(value.clashes(other) for other in self.people):
                self.people.append(value)
                return value
        raise PoolExhaustedError("person")

    def fill(self, template: str, known: Mapping[str, str]) -> str:
        """Replace each ``{name}`` by what is known under it, or else by a value of that pool."""
        text = _SLOT.sub(lambda slot: known[slot[1]] if slot[1] in known else self.draw(slot[1]).text, template)
        return _tidy(text)

    def choose(self, pool: str) -> str:
        """One line of a pool, its slots not filled."""
        return self.rng.choice(self.pools[pool])

    def _pick(self, pool: str) -> str:
        return self.rng.choice(self.pools[pool])

    def _compose_person(self) -> Value:
        culture = self._pick("cultures")
        pronoun = self.rng.choice(("he", "she"))
        given = self._pick(f"{culture}.start") + self._pick(f"{culture}.{pronoun}")
        family = self._pick(f"{culture}.family") + self._pick(f"{culture}.familyend")
        if self.rng.random() < 0.45:
            return Value(given, rf"\b{re.escape(given)}\b", pronoun)
        return Value(f"{given} {family}", rf"\b{re.escape(given)}\b|\b{re.escape(family)}\b", pronoun)

    def _draw_entry(self, pool: str) -> Value:
        entry = self.fill(self._pick(pool), {})
        marked = re.findall(r"\*([^*]+)\*", entry)
        text = _tidy(entry.replace("*", ""))
        names = marked or [_ARTICLE.sub("", text)]
        pronoun = "they" if pool in _PLURAL_POOLS else "it"
        return Value(text, "|".join(rf"\b{re.escape(name)}" for name in names), pronoun)
