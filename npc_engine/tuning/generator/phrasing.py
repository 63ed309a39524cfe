"""What is said: a player's questions in many moods, an NPC's replies in its own manner."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from npc_engine.tuning.generator.facts import Attribute
from npc_engine.tuning.generator.items import OBJECTS, POSSESSIVES, Item, sentence_case
from npc_engine.tuning.generator.values import Drawer, parse_pools, read_data

REFUSAL = (
    r"(don'?t|do not|didn'?t|did not|couldn'?t|could not|can'?t|cannot|wouldn'?t|won'?t|never|not|nor|hasn'?t|haven'?t|"
    r"wasn'?t|isn'?t) (\w+,? ){0,5}(know|say|tell|learn|hear|heard|told|ask|asked|see|seen|saw|recall|remember|learned|"
    r"learnt|count|counted|sure|certain|mention|mentioned|name|named|given|gave|shown|guess|written|wrote|spoke|speak|"
    r"swear|measured|reached|shared|read|caught|found|looked|weighed|said|known|met|set down|noted|recorded)|no idea|"
    r"no notion|no clue|not a clue|beyond me|nobody|no one|no man|who knows|none of us|haven'?t a|is lost on me|"
    r"escapes me|no word|unknown to me|is blank|blank to me|news to me|dunno|wish I knew|silent on|not mine to know|"
    r"outside my|out of my|missing from|have nothing|has me beat|your guess"
)
"""Matches a reply that owns up to not knowing; the same as in the scenes written by hand."""

_AFTER_PREPOSITION = r"\b(about|of|for|to|with|by|find|see|saw|meet|met|ask|pay|from|over|than|recognize|spot|than)"
_DETERMINER = r"(?:\b(?:the|your|that|this|some|an?) )?"
_SWAPPED = {"you": "me", "your": "my", "yours": "mine"}


@cache
def talk() -> dict[str, tuple[str, ...]]:
    """The lines that fit any domain."""
    return parse_pools(read_data("talk.txt"))


@dataclass(frozen=True, slots=True)
class Smalltalk:
    prompts: tuple[str, ...]
    replies: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Secret:
    text: str
    pool: str
    topic: str
    questions: tuple[str, ...]


@cache
def smalltalk() -> tuple[Smalltalk, ...]:
    return tuple(Smalltalk(tuple(lines["p"]), tuple(lines["r"])) for lines in _groups("smalltalk.txt"))


@cache
def secrets() -> tuple[Secret, ...]:
    return tuple(
        Secret(lines["s"][0], lines["v"][0], lines["t"][0], tuple(lines["q"])) for lines in _groups("secrets.txt")
    )


def _groups(name: str) -> list[dict[str, list[str]]]:
    groups: list[dict[str, list[str]]] = [{}]
    for line in read_data(name).splitlines():
        if line.startswith("#"):
            continue
        if not line.strip():
            groups.append({})
            continue
        tag, _, rest = line.partition(" ")
        groups[-1].setdefault(tag, []).append(rest)
    return [group for group in groups if group]


@dataclass(frozen=True, slots=True)
class Voice:
    """How the NPC speaks: its oaths and tags come again through a scene."""

    trait: str
    manner: str
    catchphrases: tuple[str, ...]

    @classmethod
    def draw(cls, drawer: Drawer) -> Voice:
        rng = drawer.rng
        phrases = [drawer.fill(rng.choice(talk()["oath"]), {}) + rng.choice((".", "!"))]
        phrases += rng.sample(talk()["tag"], 2)
        rng.shuffle(phrases)
        first = drawer.draw("trait")
        trait = f"{first.text} and {drawer.draw_apart('trait', [first]).text}"
        return cls(trait, rng.choice(talk()["manner"]), tuple(drawer.fill(phrase, {}) for phrase in phrases[:2]))

    def flavour(self, reply: str, rng: random.Random) -> str:
        """Now and then an opener before it or a catchphrase after it; the fact stays early."""
        chance = rng.random()
        if chance < 0.12:
            return sentence_case(f"{rng.choice(talk()['opener'])} {reply}")
        if chance < 0.34:
            return sentence_case(f"{reply} {rng.choice(self.catchphrases)}")
        return sentence_case(reply)


def ask(item: Item, attribute: Attribute, drawer: Drawer) -> str:
    """A question for this attribute of the item's key."""
    if drawer.rng.random() < 0.16:
        template = drawer.rng.choice(talk()["lead"]).replace("{topic}", attribute.topic)
    else:
        template = drawer.rng.choice(attribute.questions)
    return drawer.fill(template, item.known())


def as_pronoun(template: str, pronoun: str) -> str:
    """The template with a pronoun where the key stands."""
    objective, possessive = OBJECTS[pronoun], POSSESSIVES[pronoun]
    template = re.sub(rf"{_DETERMINER}\{{key\}}'s\b(?= \w)", possessive, template)
    template = re.sub(
        r"\b(?:in|at|to|inside) (?:the )?\{key\}", "there" if pronoun == "it" else f"to {objective}", template
    )
    template = re.sub(rf"{_AFTER_PREPOSITION} {_DETERMINER}\{{key\}}", rf"\1 {objective}", template)
    return re.sub(rf"{_DETERMINER}\{{key\}}", pronoun, template)


def swap_person(clause: str) -> str:
    """What a block says to the NPC ("your aunt"), as the NPC says it ("my aunt")."""
    return re.sub(r"\b(you|yours?)\b", lambda match: _SWAPPED[match[1]], clause)


def clause(item: Item, attribute: Attribute, drawer: Drawer) -> str:
    return drawer.fill(attribute.say, item.known())


def spoken(item: Item, attribute: Attribute, drawer: Drawer) -> str:
    """The clause, as the NPC says it."""
    said = clause(item, attribute, drawer)
    return said if item.fact.is_raw else swap_person(said)


def tell(item: Item, attribute: Attribute, drawer: Drawer) -> str:
    """A reply that gives this attribute."""
    if drawer.rng.random() < 0.22:
        return say_line("telling", drawer, {"say": spoken(item, attribute, drawer)})
    return sentence_case(drawer.fill(drawer.rng.choice(attribute.replies), item.known()))


def say_line(pool: str, drawer: Drawer, known: Mapping[str, str]) -> str:
    """A line of the general talk with its slots filled."""
    return sentence_case(drawer.fill(drawer.rng.choice(talk()[pool]), known))


def restyle(text: str, drawer: Drawer) -> str:
    """The same question as a casual, rude, hasty or polite person would type it."""
    rng = drawer.rng
    chance = rng.random()
    if chance < 0.12:
        return f"{say_line('hello', drawer, {})} {sentence_case(text)}"
    if chance < 0.15:
        return f"{say_line('rude', drawer, {})} {text}"
    if chance < 0.21:
        return f"{sentence_case(text)} {say_line('thanks', drawer, {})}"
    if chance < 0.31:
        return text.lower().rstrip("?.!").replace(",", "")
    if chance < 0.37:
        return _misspell(text, rng)
    return text if text[0].islower() and rng.random() < 0.5 else sentence_case(text)


def _misspell(text: str, rng: random.Random) -> str:
    # names stay as they are: they are what the block is found by
    words = text.split(" ")
    places = [i for i, word in enumerate(words) if i > 0 and word.isalpha() and word.islower() and len(word) > 3]
    for i in rng.sample(places, min(len(places), rng.choice((1, 1, 2)))):
        at = rng.randrange(1, len(words[i]) - 1)
        word = words[i]
        words[i] = rng.choice((word[:at] + word[at + 1 :], word[:at] + word[at + 1] + word[at] + word[at + 2 :]))
    return " ".join(words)
