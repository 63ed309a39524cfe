"""Bijections of closed word classes: colours, weekdays, compass directions and the like."""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Iterator

from npc_engine.tuning.augment_pools import (
    CLASSES,
    COLOUR_IDIOM,
    COMPASS,
    COMPASS_ENDINGS,
    MONTHS,
    RELATED,
    WEEKDAYS,
)

CAPITALIZED_ONLY = frozenset({"may"})
"""Words that are of a class only when capitalized in mid-sentence."""

NAMES_OF_CLASSES = ("colours", "weekdays", "months", "compass", "metals", "trees", "animals", "fruits", "seasons")
_RELATIVES = {word: set(relatives.split()) for word, relatives in RELATED.items()}
_COLOUR_IDIOM = re.compile(rf"\b([a-z]+)[- ](?:{COLOUR_IDIOM})\b")
_SHORT_DAYS = frozenset({"mon", "tue", "tues", "wed", "thu", "thur", "thurs", "fri", "weekend", "weekends", "weekdays"})
_SHORT_MONTHS = frozenset({"jan", "feb", "mar", "apr", "jun", "jul", "aug", "sep", "sept", "oct", "nov", "dec"})


class ClassContext:
    """What a scene says, as far as the classes care: its words, and which parts of words its patterns look for."""

    def __init__(self, text: str, parts: Collection[str]) -> None:
        self.text = text.lower()
        self.words = set(re.findall(r"[^\W\d_]+", self.text))
        self.parts = {part.lower() for part in parts if len(part) > 2}

    def pins(self, forms: Collection[str]) -> bool:
        """True if the word with these forms has to stay: a pattern, a compound or a related word depends on it."""
        word = min(forms, key=len)
        if self.words & _RELATIVES.get(word, set()):
            return True
        if any(form.startswith(part) or form.endswith(part) for form in forms for part in self.parts):
            return True
        if len(word) < 4:
            return False
        return any(other not in forms and (other.startswith(word) or other.endswith(word)) for other in self.words)


def draw_class(name: str, context: ClassContext, rng: random.Random) -> dict[str, str]:
    """Word → word for one class; empty where the scene has none of its words or they can't be replaced safely."""
    match name:
        case "weekdays":
            return _shift(WEEKDAYS, _SHORT_DAYS, context, rng)
        case "months":
            return _shift(MONTHS, _SHORT_MONTHS, context, rng)
        case "compass":
            return _compass(context, rng)
        case _:
            pairs = [pair for group in CLASSES[name] for pair in _permute(name, group, context, rng)]
            return dict(pairs)


def _permute(
    name: str, group: tuple[tuple[str, ...], ...], context: ClassContext, rng: random.Random
) -> Iterator[tuple[str, str]]:
    if not any(form in context.words for forms in group for form in forms):
        return
    fixed = {match[1] for match in _COLOUR_IDIOM.finditer(context.text)} if name == "colours" else set()
    free = [forms for forms in group if not fixed.intersection(forms) and not context.pins(forms)]
    for forms, others in zip(free, rng.sample(free, len(free)), strict=True):
        yield from zip(forms, others, strict=True)


def _shift(
    names: tuple[str, ...], spoilers: frozenset[str], context: ClassContext, rng: random.Random
) -> dict[str, str]:
    """All of a cycle moved by one distance, so that "the day after" stays true."""
    if context.words & spoilers or not any(word in context.words or word + "s" in context.words for word in names):
        return {}
    if any(word.startswith(part) or word.endswith(part) for part in context.parts for word in names):
        return {}
    distance = rng.randrange(1, len(names))
    pairs = {word: names[(index + distance) % len(names)] for index, word in enumerate(names)}
    return pairs | {word + "s": other + "s" for word, other in pairs.items()}


def _compass(context: ClassContext, rng: random.Random) -> dict[str, str]:
    starts = {word for word in context.words if word.startswith(COMPASS)}
    if not starts:
        return {}
    images = list(rng.choice((("south", "north", "east", "west"), ("north", "south", "west", "east"))))
    if rng.random() < 1 / 3:
        images = ["south", "north", "west", "east"]
    is_joined = re.search(r"(?:north|south)(?:[- ]by)?[- ]?(?:east|west)", context.text)
    if not is_joined and rng.random() < 0.5:
        images = rng.sample(COMPASS, 4)
    turned = dict(zip(COMPASS, images, strict=True))
    words = {word + ending: new + ending for word, new in turned.items() for ending in COMPASS_ENDINGS}
    for first in COMPASS[:2]:
        for second in COMPASS[2:]:
            for ending in COMPASS_ENDINGS:
                words[first + second + ending] = turned[first] + turned[second] + ending
    return words if starts <= words.keys() else {}
