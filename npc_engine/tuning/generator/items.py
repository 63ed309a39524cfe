"""Items: facts with their values, and the texts of the blocks that tell them."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from npc_engine.tuning.generator.facts import Attribute, FactType
from npc_engine.tuning.generator.values import Drawer, Value

OBJECTS = {"he": "him", "she": "her", "it": "it", "they": "them"}
POSSESSIVES = {"he": "his", "she": "her", "it": "its", "they": "their"}


@dataclass(frozen=True, slots=True)
class Item:
    """One block: its fact type, what it is about, and its values; a slot without a value is not told.

    `form_seed` fixes the wording, so that an update changes the value alone.
    """

    fact: FactType
    block_id: str
    layer: str
    key: Value
    values: Mapping[str, Value]
    form_seed: str
    place: str

    def known(self) -> dict[str, str]:
        """What the slots of its templates stand for."""
        pronoun = self.key.pronoun
        words = {
            "key": self.key.text,
            "place": self.place,
            "he": pronoun,
            "him": OBJECTS[pronoun],
            "his": POSSESSIVES[pronoun],
        }
        return words | {slot: value.text for slot, value in self.values.items()}

    def with_value(self, slot: str, value: Value, form_seed: str) -> Item:
        return replace(self, values={**self.values, slot: value}, form_seed=form_seed)

    def told(self) -> list[Attribute]:
        return [each for each in self.fact.attributes if each.slot in self.values]

    def untold(self) -> list[Attribute]:
        return [each for each in self.fact.attributes if each.slot not in self.values]


def sentence_case(text: str) -> str:
    """A capital at the start and after each full stop."""
    return re.sub(r"(^|[.!?] )([a-zà-ž])", lambda match: match[1] + match[2].upper(), text)


def render_block(item: Item, drawer: Drawer) -> str:
    """The block's text; the same for the same item and drawer pools."""
    rng = random.Random(item.form_seed)
    own = Drawer(rng, drawer.pools, drawer.currency, list(drawer.people))
    if item.fact.is_raw:
        return sentence_case(own.fill(_drop_untold(item, rng.choice(item.fact.blocks)), item.known()))
    match item.layer:
        case "sheet":
            return _render_sheet(item, own)
        case "memory":
            return _render_memory(item, own)
        case "location":
            text = _render_plain(item, own, with_head=False)
            return f"At {item.place} right now: {text}" if rng.random() < 0.5 else sentence_case(text)
        case _:
            return _render_world(item, own)


def _render_world(item: Item, drawer: Drawer) -> str:
    rng = drawer.rng
    chance = rng.random()
    if chance < 0.12:
        return _render_json(item)
    if chance < 0.3:
        return sentence_case(_render_labels(item, rng))
    text = sentence_case(_render_plain(item, drawer, with_head=True))
    return f"News of {item.key.text}: {text}" if item.key.text and chance > 0.95 else text


def _render_sheet(item: Item, drawer: Drawer) -> str:
    match drawer.rng.randrange(4):
        case 0:
            return sentence_case(f"You know that {_says(item, drawer, ', and that ')}.")
        case 1:
            return sentence_case(f"You have heard that {_says(item, drawer, ', and that ')}.")
        case _:
            is_person = item.key.is_person and drawer.rng.random() < 0.7
            label = "People you know" if is_person else "What you know"
            return f"{label}: {_render_plain(item, drawer, with_head=False)}"


def _render_memory(item: Item, drawer: Drawer) -> str:
    day = drawer.rng.randint(1, 60)
    label = "Your memory" if drawer.rng.random() < 0.2 else f"Your memory from day {day}"
    match drawer.rng.randrange(4):
        case 0:
            return f"{label}: {drawer.draw_person().text} told you that {_says(item, drawer, ', and that ')}."
        case 1:
            return f"{label}: you learned that {_says(item, drawer, ' and that ')}."
        case 2:
            return sentence_case(f"You remember from day {day} that {_says(item, drawer, ' and that ')}.")
        case _:
            return f"{label}: {_render_plain(item, drawer, with_head=False)}"


def _render_plain(item: Item, drawer: Drawer, *, with_head: bool) -> str:
    rng = drawer.rng
    templates = [each for each in item.fact.blocks if _fits(item, each) and (with_head or ":" not in each)]
    if templates and rng.random() < 0.6:
        text = drawer.fill(_drop_untold(item, rng.choice(templates)), item.known())
    else:
        text = _says(item, drawer, rng.choice((". ", ", and ", "; "))) + "."
    if not item.untold() and rng.random() < 0.3:
        kind = "person" if item.key.is_person else "thing"
        filler = drawer.fill(drawer.choose(f"filler.{kind}"), item.known())
        text = f"{text} {filler}"
    return re.sub(r"([.!?] )([a-zà-ž])", lambda match: match[1] + match[2].upper(), text)


def _fits(item: Item, template: str) -> bool:
    text = _drop_untold(item, template)
    return not any(f"{{{each.slot}}}" in text for each in item.untold())


def _drop_untold(item: Item, template: str) -> str:
    head, *parts = (part.strip() for part in template.split("|"))
    kept = [part for part in parts if not any(f"{{{each.slot}}}" in part for each in item.untold())]
    return " ".join((head, *kept)).strip()


def _says(item: Item, drawer: Drawer, joint: str) -> str:
    clauses = [drawer.fill(each.say, item.known()) for each in item.told()]
    drawer.rng.shuffle(clauses)
    key = f"{item.key.text} "
    if len(clauses) > 1 and clauses[0].startswith(key) and clauses[1].startswith(key) and drawer.rng.random() < 0.7:
        clauses[1] = f"{item.key.pronoun} {clauses[1].removeprefix(key)}"
    return joint.join(clauses)


def _render_labels(item: Item, rng: random.Random) -> str:
    pairs = [(each.label, item.values[each.slot].text) for each in item.told()]
    rng.shuffle(pairs)
    between, after = rng.choice(((": ", "; "), (" = ", ", "), (" - ", " / "), (": ", ". ")))
    head = item.key.text or item.fact.name
    return f"{head}{rng.choice((' — ', ': ', ' | '))}" + after.join(f"{label}{between}{text}" for label, text in pairs)


def _render_json(item: Item) -> str:
    state = {"name": item.key.text} if item.key.text else {}
    told = {each.label: item.values[each.slot].text for each in item.told()}
    return json.dumps({"type": item.fact.name} | state | told, ensure_ascii=False)
