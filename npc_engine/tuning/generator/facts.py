"""Fact types and domains, read from the text files under ``data/domains``.

A file looks like this; `{key}` is what a fact is about, `{v}` and `{w}` are what it tells::

    = tavern
    role innkeeper; cook
    place the taproom
    @ bed key=inn in=world,sheet max=4      a fact type; one block tells `v` and `w`
    b {key}: | a bed is {v}. | {w} runs it.   a block's text; parts after a bar may be left out
    v price bed                               slot, pool, label
    s a bed at {key} costs {v}                as a clause
    t what a bed at {key} costs               as a topic
    h the person who runs {key}               the value's description, for a person
    q What do they take for a night at {key}?
    r {v} a night.
    x Is there a bath at {key}? | if {key} has a bath      a near miss: nobody tells it
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib import resources

from npc_engine.tuning.generator.values import parse_pools


@dataclass(slots=True)
class Attribute:
    """One thing that a fact type tells about its key."""

    slot: str
    pool: str
    label: str
    say: str = ""
    topic: str = ""
    description: str = ""
    questions: list[str] = field(default_factory=list)
    replies: list[str] = field(default_factory=list)


@dataclass(slots=True)
class FactType:
    """`layers` are where its blocks may stand; `is_raw` if its templates are whole blocks."""

    name: str
    key_pool: str
    layers: tuple[str, ...]
    max_group: int
    is_raw: bool
    blocks: list[str] = field(default_factory=list)
    attributes: list[Attribute] = field(default_factory=list)
    near_misses: list[tuple[str, str]] = field(default_factory=list)

    def attribute(self, slot: str) -> Attribute:
        return next(each for each in self.attributes if each.slot == slot)


@dataclass(slots=True)
class Domain:
    """A walk of life: who the NPC may be, where it stands and what it may be asked."""

    name: str
    genres: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    places: tuple[str, ...] = ()
    pools: dict[str, tuple[str, ...]] = field(default_factory=dict)
    facts: list[FactType] = field(default_factory=list)


DEFAULT_LAYERS = ("world", "world", "world", "sheet", "memory")


@cache
def load_domains() -> tuple[Domain, ...]:
    """All domains, by name; "universal" is among them."""
    folder = resources.files("npc_engine.tuning.generator") / "data" / "domains"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".txt")), key=lambda file: file.name)
    return tuple(domain for file in files for domain in parse_domains(file.read_text(encoding="utf-8")))


def parse_domains(text: str) -> Iterator[Domain]:
    """Parse one file. Raises ValueError with the line for a mistake."""
    domain: Domain | None = None
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        tag, _, rest = line.partition(" ")
        if tag == "=":
            if domain:
                yield domain
            domain = Domain(rest.strip())
        elif domain is None:
            raise ValueError(f"line {number}: stands before the first domain")
        else:
            try:
                _parse_line(domain, tag, rest.strip())
            except (ValueError, IndexError) as error:
                raise ValueError(f"line {number}: {line!r}: {error}") from error
    if domain:
        yield domain


def _parse_line(domain: Domain, tag: str, rest: str) -> None:
    entries = tuple(entry.strip() for entry in rest.split(";") if entry.strip())
    match tag:
        case "genre":
            domain.genres += entries
        case "role":
            domain.roles += entries
        case "place":
            domain.places += entries
        case "pool":
            domain.pools |= parse_pools(rest)
        case "@":
            domain.facts.append(_parse_header(rest))
        case _:
            _parse_fact_line(domain.facts[-1], tag, rest)


def _parse_header(rest: str) -> FactType:
    name, *options = rest.split()
    given = dict(option.split("=") for option in options)
    layers = tuple(given.get("in", ",".join(DEFAULT_LAYERS)).split(","))
    return FactType(
        name=name,
        key_pool=given.get("key", ""),
        layers=tuple(layer.rstrip("!") for layer in layers),
        max_group=int(given.get("max", "5")),
        is_raw=any(layer.endswith("!") for layer in layers),
    )


def _parse_fact_line(fact: FactType, tag: str, rest: str) -> None:
    match tag:
        case "b":
            fact.blocks.append(rest)
        case "v" | "w":
            pool, _, label = rest.partition(" ")
            fact.attributes.append(Attribute(slot=tag, pool=pool, label=label or pool))
        case "s":
            fact.attributes[-1].say = rest
        case "t":
            fact.attributes[-1].topic = rest
        case "h":
            fact.attributes[-1].description = rest
        case "q":
            fact.attributes[-1].questions.append(rest)
        case "r":
            fact.attributes[-1].replies.append(rest)
        case "x":
            question, _, topic = rest.partition("|")
            fact.near_misses.append((question.strip(), topic.strip()))
        case _:
            raise ValueError(f"unknown tag {tag!r}")
