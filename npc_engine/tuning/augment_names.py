"""Finding the proper names of a scene, and composing fresh ones."""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Iterable, Sequence

from npc_engine.tuning.augment_pools import COMMON, CULTURES, Culture
from npc_engine.tuning.augment_text import TOKEN, is_inner

_SHORTEST = 3
_DRAWS = 40
_CODAS = ("nn", "rk", "lm", "sk", "rn", "lv", "nd", "rth", "lk", "th", "rr", "ld", "x")
_VOWELS = re.compile(r"[aeiouyà-åè-ïò-öù-ýāēīōūı]+", re.IGNORECASE)
_NO_NAME = re.compile(r"(?:ish|ese|ness|tion|ment|hood|ology|less|ful)s?$")


def find_names(told: Iterable[str], asked: Iterable[str], given: str, taken: Collection[str]) -> set[str]:
    """The names in a scene, in lower case.

    `told` are blocks and replies, `asked` what players say (they may write names in lower case), `given` is the
    character's name, `taken` are words of other classes.
    """
    inner: set[str] = set()
    lower: set[str] = set()
    for text in (*told, *asked):
        for match in TOKEN.finditer(text):
            word = match[0]
            if word[0].isupper() and len(word) >= _SHORTEST and is_inner(text[: match.start()]):
                inner.add(word)
    for text in told:
        lower.update(word for word in TOKEN.findall(text) if word[0].islower())
    inner.update(word for word in TOKEN.findall(given) if word[0].isupper() and len(word) >= _SHORTEST)
    names = {word.lower() for word in inner if not word.isupper()}
    return {name for name in names if name not in lower and name not in taken and not _is_common(name)}


def _is_common(word: str) -> bool:
    return word in COMMON or word.removesuffix("s") in COMMON or _NO_NAME.search(word) is not None


def fresh_names(names: Collection[str], words: Collection[str], rng: random.Random) -> dict[str, str]:
    """Name → fresh name, all in lower case. A name that begins with another keeps doing so.

    `words` are all the words of the scene, none of which a fresh name may be.
    """
    fresh: dict[str, str] = {}
    cultures = rng.sample(CULTURES, 2)
    for name in sorted(names, key=lambda word: (len(word), word)):
        base = next((short for short in sorted(fresh, key=len, reverse=True) if name.startswith(short)), None)
        if base is not None:
            fresh[name] = fresh[base] + name.removeprefix(base)
        elif (new := _compose(name, cultures, {*words, *fresh.values()}, rng)) is not None:
            fresh[name] = new
    return fresh


def _compose(name: str, cultures: Sequence[Culture], taken: Collection[str], rng: random.Random) -> str | None:
    for _ in range(_DRAWS):
        new = _syllables(name, rng.choice(cultures), rng)
        if new not in COMMON and not any(
            new.startswith(word) or word.startswith(new) for word in taken if len(word) > 2
        ):
            return new
    return None


def _syllables(name: str, culture: Culture, rng: random.Random) -> str:
    """About as many syllables as the name has, ending as it does: in a vowel, a consonant or an s."""
    count = min(max(len(_VOWELS.findall(name)), 1), 4)
    is_vowel = _VOWELS.fullmatch(name[-1]) is not None and not (name.endswith("e") and count == 1)
    endings = culture.vowel if is_vowel else culture.consonant
    if count == 1:
        start = rng.choice(culture.starts)
        new = start + ("" if _VOWELS.fullmatch(start[-1]) else rng.choice("aeo")) + rng.choice(_CODAS)
        return new[:-1] + "s" if name.endswith("s") else new
    middles = "".join(rng.choice(culture.middles) for _ in range(count - 2))
    new = rng.choice(culture.starts) + middles + rng.choice(endings)
    return new[:-1] + "s" if name.endswith("s") else new
