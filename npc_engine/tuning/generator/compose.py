"""Composes scenes: draws a domain, its facts and a cast, lays out the blocks and holds the conversation."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count

from npc_engine.tuning.generator.conversation import Conversation
from npc_engine.tuning.generator.facts import Domain, FactType, load_domains
from npc_engine.tuning.generator.items import Item, render_block
from npc_engine.tuning.generator.phrasing import Voice
from npc_engine.tuning.generator.values import Drawer, PoolExhaustedError, Value, shared_pools
from npc_engine.tuning.scenes import Scene, SceneBlock, SceneCharacter, check_scene

_UNIVERSAL = "universal"
_NO_KEY = Value("", "(?!)")
_MAX_BLOCKS = 30
_PREFIXES = {"world": "w", "location": "l", "sheet": "c", "memory": "m"}


def generate_scenes(num_scenes: int, seed: int) -> Iterator[Scene]:
    """Yield scenes that `check_scene` finds nothing wrong with; the same ones for the same seed.

    Scene `i` depends on the seed and on `i` alone, so a longer run starts with the scenes of a shorter one.
    """
    for index in range(num_scenes):
        yield next(scene for scene in _attempts(seed, index) if scene is not None)


def _attempts(seed: int, index: int) -> Iterator[Scene | None]:
    for attempt in count():
        try:
            scene = _compose(random.Random(f"{seed}/{index}/{attempt}"), f"s{seed}-{index:06}")
        except PoolExhaustedError:
            continue
        yield None if check_scene(scene) else scene


@dataclass(slots=True)
class _Draft:
    """A scene in the making."""

    drawer: Drawer
    place: str
    items: list[Item] = field(default_factory=list)
    blocks: dict[str, list[SceneBlock]] = field(default_factory=lambda: {layer: [] for layer in _PREFIXES})

    def __len__(self) -> int:
        return sum(map(len, self.blocks.values()))

    def next_id(self, layer: str) -> str:
        return f"{_PREFIXES[layer]}{len(self.blocks[layer]) + 1}"

    def add_text(self, layer: str, text: str) -> None:
        self.blocks[layer].append(SceneBlock(id=self.next_id(layer), text=text))

    def add_group(self, fact: FactType, size: int, keys: Sequence[Value] = ()) -> None:
        """Several blocks of one type, told apart by their keys and their values."""
        rng = self.drawer.rng
        layer = rng.choice(fact.layers)
        given = list(keys)
        group: list[Item] = []
        for _ in range(size):
            if len(self) >= _MAX_BLOCKS:
                return
            try:
                key = given.pop(0) if given else self._draw_key(fact)
                values = self._draw_values(fact, key, group)
            except PoolExhaustedError:
                break
            if len(values) > 1 and group and not fact.is_raw and rng.random() < 0.12:
                values.pop(rng.choice(sorted(values)))
            item = Item(fact, self.next_id(layer), layer, key, values, f"{rng.random()}", self.place)
            group.append(item)
            self.items.append(item)
            self.add_text(layer, render_block(item, self.drawer))

    def _draw_key(self, fact: FactType) -> Value:
        if not fact.key_pool:
            return _NO_KEY
        return self.drawer.draw_apart(fact.key_pool, [item.key for item in self.items if item.key is not _NO_KEY])

    def _draw_values(self, fact: FactType, key: Value, group: list[Item]) -> dict[str, Value]:
        values: dict[str, Value] = {}
        for attribute in fact.attributes:
            taken = [each.values[attribute.slot] for each in group if attribute.slot in each.values]
            values[attribute.slot] = self.drawer.draw_apart(attribute.pool, [*taken, *values.values(), key])
        return values


def _compose(rng: random.Random, scene_id: str) -> Scene:
    domains = {domain.name: domain for domain in load_domains()}
    universal = domains.pop(_UNIVERSAL)
    domain = rng.choice(list(domains.values()))
    guest = rng.choice(list(domains.values()))  # breadth: at times the NPC knows of another walk of life, too
    drawer = Drawer(rng, {**shared_pools(), **guest.pools, **domain.pools})
    drawer.currency = drawer.draw("currency").text
    name = drawer.draw_person().text
    role = rng.choice(domain.roles)
    place = drawer.fill(rng.choice(domain.places), {})
    voice = Voice.draw(drawer)
    draft = _Draft(drawer, place)
    _add_frame(draft, name, role, voice)
    _add_facts(draft, domain, guest, universal)
    talk = Conversation(
        drawer=drawer,
        voice=voice,
        items={item.block_id: item for item in draft.items},
        about={"name": name, "role": role, "place": place},
    )
    talk.hold(rng.randint(6, 10))
    return Scene(
        id=scene_id,
        genre=f"{domain.name}: {rng.choice(domain.genres)}",
        world=tuple(draft.blocks["world"]),
        location=tuple(draft.blocks["location"]),
        character=SceneCharacter(name=name, role=role, sheet=tuple(draft.blocks["sheet"])),
        memories=tuple(draft.blocks["memory"]),
        private_to_others=tuple(talk.secrets),
        turns=tuple(talk.turns),
        updates=tuple(talk.updates),
    )


def _add_frame(draft: _Draft, name: str, role: str, voice: Voice) -> None:
    """Who the NPC is and where: asked about only in passing."""
    rng = draft.drawer.rng
    draft.add_text("sheet", rng.choice((f"You are {name}, {role}.", f"You are {name}, {role} at {draft.place}.")))
    if rng.random() < 0.6:
        draft.add_text("sheet", f"Your personality: {voice.trait}.")
    if rng.random() < 0.6:
        phrases = " or ".join(f'"{phrase}"' for phrase in voice.catchphrases)
        draft.add_text("sheet", f"How you speak: {voice.manner}. You like to say {phrases}")
    if rng.random() < 0.5:
        draft.add_text(
            "world",
            draft.drawer.fill("The world is called {town}. People here pay in ", {}) + f"{draft.drawer.currency}.",
        )
    if rng.random() < 0.6:
        draft.add_text("location", f"This place is {draft.place}.")


def _add_facts(draft: _Draft, domain: Domain, guest: Domain, universal: Domain) -> None:
    rng = draft.drawer.rng
    small = rng.random() < 0.2
    chosen = rng.sample(domain.facts, min(len(domain.facts), 1 if small else rng.randint(1, 3)))
    if not small and guest is not domain and rng.random() < 0.35:
        chosen.append(rng.choice(guest.facts))
    for fact in chosen:
        draft.add_group(fact, rng.randint(2, fact.max_group))
    named = [
        item.values[attribute.slot]
        for item in draft.items
        for attribute in item.told()
        if attribute.description and attribute.pool == "person"
    ]
    extras = rng.sample(universal.facts, rng.randint(1, 2) if small else rng.randint(2, 6))
    personal = [fact for fact in universal.facts if fact.key_pool == "person" and fact not in extras]
    if named and rng.random() < 0.75:
        extras.insert(0, rng.choice(personal))
    for fact in extras:
        keys = rng.sample(named, min(len(named), 3)) if fact.key_pool == "person" and rng.random() < 0.8 else []
        draft.add_group(fact, max(len(keys), rng.randint(1, fact.max_group)), keys)
