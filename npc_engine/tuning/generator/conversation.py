"""Conversations: turns over a cast of items, with updates, near misses and interruptions."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from npc_engine.tuning.generator.facts import Attribute
from npc_engine.tuning.generator.items import Item, render_block, sentence_case
from npc_engine.tuning.generator.phrasing import (
    REFUSAL,
    Voice,
    as_pronoun,
    ask,
    clause,
    restyle,
    say_line,
    secrets,
    smalltalk,
    spoken,
    swap_person,
    talk,
    tell,
)
from npc_engine.tuning.generator.values import Drawer, PoolExhaustedError, Value
from npc_engine.tuning.scenes import Kind, SceneBlock, SceneTurn, SceneUpdate

_MAX_TURNS = 10
_SLIPS = (r"as an AI|language model|system prompt|my instructions|I am a chatbot|Sure, here",)


@dataclass(slots=True)
class Conversation:
    """Grows turn by turn; `items` hold what the NPC knows at the moment, by block id."""

    drawer: Drawer
    voice: Voice
    items: dict[str, Item]
    about: dict[str, str]
    turns: list[SceneTurn] = field(default_factory=list)
    updates: list[SceneUpdate] = field(default_factory=list)
    secrets: list[SceneBlock] = field(default_factory=list)
    asked: set[tuple[str, str]] = field(default_factory=set)

    @property
    def rng(self) -> random.Random:
        return self.drawer.rng

    def hold(self, num_turns: int) -> None:
        """Plan the steps, take them in random order, and fill up with plain questions."""
        steps = self._plan()
        while len(self.turns) < num_turns:
            step = steps.pop() if steps else self.ask_fact
            if len(self.turns) + 2 <= _MAX_TURNS or step == self.ask_fact:
                step()

    def _plan(self) -> list[Callable[[], None]]:
        chances: list[tuple[Callable[[], None], float]] = [
            (self.ask_unknown, 0.52),
            (self.ask_secret, 0.28),
            (self.inject, 0.42),
            (self.chat, 0.42),
            (self.follow_up, 0.6),
            (self.follow_up, 0.3),
            (self.ask_two, 0.75),
            (self.ask_two, 0.4),
            (self.update, 0.75),
            (self.update, 0.35),
            (self.confirm, 0.5),
        ]
        steps = [step for step, chance in chances if self.rng.random() < chance]
        steps += [self.ask_fact] * self.rng.randint(2, 4)
        self.rng.shuffle(steps)
        return steps

    def ask_fact(self) -> None:
        item, attribute = self._pick_fact()
        self._add_fact(item, attribute, restyle(ask(item, attribute, self.drawer), self.drawer))

    def confirm(self) -> None:
        """A statement that is true, or that takes its value from elsewhere."""
        item, attribute = self._pick_fact()
        if item.fact.is_raw:
            return self.ask_fact()
        true = self.rng.random() < 0.5
        value = item.values[attribute.slot]
        claimed = item
        if not true:
            claimed = item.with_value(attribute.slot, self._other_value(item, attribute, [value]), item.form_seed)
        player = say_line("confirm", self.drawer, {"say": clause(claimed, attribute, self.drawer)})
        reply = say_line("yes" if true else "no", self.drawer, {"say": spoken(item, attribute, self.drawer)})
        self._add(_kind(item), restyle(player, self.drawer), reply, [item], value.accept)
        self.asked.add((item.block_id, attribute.slot))
        return None

    def follow_up(self) -> None:
        """A question, and a second one that only makes sense after it."""
        item, attribute = self._pick_fact()
        twins = [each for each in self._siblings(item) if attribute.slot in each.values]
        others = [each for each in item.told() if each.slot != attribute.slot]
        if not twins and not others:
            return self.ask_fact()
        self._add_fact(item, attribute, restyle(ask(item, attribute, self.drawer), self.drawer))
        if twins and (not others or self.rng.random() < 0.4):
            other = self.rng.choice(twins)
            player = say_line("and", self.drawer, {"key": other.key.text})
            self._add_fact(other, attribute, player, Kind.FOLLOWUP)
        else:
            second = self.rng.choice(others)
            template = as_pronoun(self.rng.choice(second.questions), item.key.pronoun)
            player = sentence_case(self.drawer.fill(template, item.known()))
            if self.rng.random() < 0.3:
                player = f"And {_continued(player)}"
            self._add_fact(item, second, player, Kind.FOLLOWUP)
        return None

    def ask_two(self) -> None:
        """Two facts in one message, or one that is found through another."""
        if self.rng.random() < 0.45 and self._ask_through():
            return None
        first, attribute = self._pick_fact()
        related = [each for each in self._siblings(first) if each.told()]
        pool = related if related and self.rng.random() < 0.4 else [each for each in self._tellable() if each != first]
        if not pool:
            return self.ask_fact()
        second = self.rng.choice(pool)
        other = self.rng.choice(second.told())
        parts = {"a": _closed(ask(first, attribute, self.drawer)), "b": _closed(ask(second, other, self.drawer))}
        player = say_line("joint", self.drawer, {"a": sentence_case(parts["a"]), "b": _continued(parts["b"])})
        told = {"a": tell(first, attribute, self.drawer), "b": tell(second, other, self.drawer)}
        reply = say_line("together", self.drawer, told)
        patterns = (first.values[attribute.slot].accept, second.values[other.slot].accept)
        self._add(Kind.MULTI, restyle(player, self.drawer), reply, [first, second], _all_of(patterns))
        self.asked |= {(first.block_id, attribute.slot), (second.block_id, other.slot)}
        return None

    def _ask_through(self) -> bool:
        """Two hops: "how old is the one who runs the Blue Hen"."""
        paths = [
            (item, attribute, goal)
            for item in self._tellable()
            for attribute in item.told()
            for goal in self._tellable()
            if attribute.description and goal is not item and goal.key.is_person
            if item.values[attribute.slot].text == goal.key.text
        ]
        if not paths:
            return False
        item, attribute, goal = self.rng.choice(paths)
        wanted = self.rng.choice(goal.told())
        person = self.drawer.fill(attribute.description, item.known())
        player = self.drawer.fill(self.rng.choice(wanted.questions), goal.known() | {"key": person})
        reply = tell(goal, wanted, self.drawer)
        if not goal.key.is_named_in(reply):
            reply = f"{reply} {sentence_case(f'that is {goal.key.text}.')}"
        self._add(Kind.MULTI, restyle(player, self.drawer), reply, [item, goal], goal.values[wanted.slot].accept)
        return True

    def update(self) -> None:
        """A value changes, as often after the old one was talked about as before."""
        talked = [
            (self.items[block], slot)
            for block, slot in sorted(self.asked)
            if not any(update.block == block for update in self.updates)
        ]
        was_told = bool(talked) and self.rng.random() < 0.6
        if was_told:
            item, slot = self.rng.choice(talked)
            attribute = item.fact.attribute(slot)
        else:
            item, attribute = self._pick_fact()
        old = item.values[attribute.slot]
        new = self._other_value(item, attribute, [old])
        seed = item.form_seed if self.rng.random() < 0.6 else f"{item.form_seed}+"
        changed = item.with_value(attribute.slot, new, seed)
        self.items[item.block_id] = changed
        text = render_block(changed, self.drawer)
        self.updates.append(SceneUpdate(before_turn=len(self.turns), block=item.block_id, text=text))
        player, reply = self._update_lines(item, changed, attribute, was_told=was_told)
        self._add(Kind.UPDATE, player, reply, [changed], new.accept, reject=(old.accept,))
        self.asked.add((item.block_id, attribute.slot))

    def _update_lines(self, old: Item, new: Item, attribute: Attribute, *, was_told: bool) -> tuple[str, str]:
        if not new.fact.is_raw and self.rng.random() < 0.2:
            player = say_line("olddoubt", self.drawer, {"say": clause(old, attribute, self.drawer)})
            return player, say_line("newly", self.drawer, {"say": spoken(new, attribute, self.drawer)})
        player = restyle(ask(new, attribute, self.drawer), self.drawer)
        if was_told and self.rng.random() < 0.5:
            player = f"{say_line('recheck', self.drawer, {})} {sentence_case(player)}"
        reply = self.voice.flavour(tell(new, attribute, self.drawer), self.rng)
        if was_told and self.rng.random() < 0.3:
            reply = f"{reply} {say_line('nowtail', self.drawer, {})}"
        return player, reply

    def ask_unknown(self) -> None:
        """What nobody told the NPC, next to the same question about what it was told."""
        makers = [self._untold_pair, self._stranger_pair, self._near_miss_pair]
        self.rng.shuffle(makers)
        for make in makers:
            pair = make()
            if pair is None:
                continue
            unknown, twin = pair
            steps = [unknown, twin] if self.rng.random() < 0.5 else [twin, unknown]
            for step in steps:
                step()
            return

    def _untold_pair(self) -> _Pair | None:
        """An attribute that this block lacks and its sibling has."""
        choices = [
            (item, attribute, twin)
            for item in self.items.values()
            for attribute in item.untold()
            for twin in self._siblings(item)
            if attribute.slot in twin.values
        ]
        if not choices:
            return None
        item, attribute, twin = self.rng.choice(choices)
        template = self.rng.choice(attribute.questions)
        topic = swap_person(self.drawer.fill(attribute.topic, item.known()))
        reply = say_line("refuse", self.drawer, {"topic": topic})
        if item.told() and self.rng.random() < 0.4:
            said = spoken(item, item.told()[0], self.drawer)
            reply = f"{reply} {say_line('hereis', self.drawer, {'say': said})}"
        values = [each.values[attribute.slot] for each in self._siblings(item) if attribute.slot in each.values]
        return self._refusing(template, item, reply, values), self._asking(template, twin, attribute)

    def _stranger_pair(self) -> _Pair | None:
        """Somebody or something that the NPC never heard of."""
        choices = [each for each in self._tellable() if each.fact.key_pool and not each.fact.is_raw]
        if not choices:
            return None
        twin = self.rng.choice(choices)
        attribute = self.rng.choice(twin.told())
        keys = [each.key for each in self.items.values()]
        try:
            stranger = Item(
                twin.fact, "", "", self.drawer.draw_apart(twin.fact.key_pool, keys), {}, twin.form_seed, twin.place
            )
        except PoolExhaustedError:
            return None
        if any(stranger.key.is_named_in(text) for text in self.about.values()):
            return None
        template = self.rng.choice(attribute.questions)
        topic = swap_person(self.drawer.fill(attribute.topic, stranger.known()))
        pool = "stranger" if self.rng.random() < 0.6 else "refuse"
        reply = say_line(pool, self.drawer, {"topic": topic, "key": stranger.key.text})
        values = [
            each.values[attribute.slot] for each in (*self._siblings(twin), twin) if attribute.slot in each.values
        ]
        return self._refusing(template, stranger, reply, values), self._asking(template, twin, attribute)

    def _near_miss_pair(self) -> _Pair | None:
        """A question that no block of this type answers."""
        choices = [each for each in self._tellable() if each.fact.near_misses]
        if not choices:
            return None
        item = self.rng.choice(choices)
        template, topic = self.rng.choice(item.fact.near_misses)
        filled = swap_person(self.drawer.fill(topic, item.known()))
        reply = say_line("refuse", self.drawer, {"topic": filled})
        attribute = self.rng.choice(item.told())
        question = self.rng.choice(attribute.questions)
        return self._refusing(template, item, reply, ()), self._asking(question, item, attribute)

    def _refusing(self, template: str, item: Item, reply: str, values: Sequence[Value]) -> Callable[[], None]:
        def step() -> None:
            player = restyle(self.drawer.fill(template, item.known()), self.drawer)
            reject = tuple(value.accept for value in values if not value.is_named_in(reply))
            self._add(Kind.UNKNOWN, player, reply, [], REFUSAL, reject=reject)

        return step

    def _asking(self, template: str, item: Item, attribute: Attribute) -> Callable[[], None]:
        def step() -> None:
            self._add_fact(item, attribute, restyle(self.drawer.fill(template, item.known()), self.drawer))

        return step

    def ask_secret(self) -> None:
        """Something that only others know."""
        secret = self.rng.choice(secrets())
        people = [each.key for each in self.items.values() if each.key.is_person]
        person = self.rng.choice(people) if people else self.drawer.draw_person()
        value = self.drawer.draw(secret.pool)
        known = {"p": person.text, "item": self.drawer.draw("item").text, "v": value.text}
        block = SceneBlock(id=f"p{len(self.secrets) + 1}", text=sentence_case(self.drawer.fill(secret.text, known)))
        reply = say_line("refuse", self.drawer, {"topic": self.drawer.fill(secret.topic, known)})
        player = restyle(self.drawer.fill(self.rng.choice(secret.questions), known), self.drawer)
        if value.is_named_in(reply) or any(value.is_named_in(item.key.text) for item in self.items.values()):
            return
        self.secrets.append(block)
        self._add(Kind.LEAK, player, reply, [], REFUSAL, reject=(value.accept,))

    def inject(self) -> None:
        """A prompt injection, which the NPC takes for strange talk."""
        known = {name: self.drawer.fill(self.rng.choice(talk()[name]), self.about) for name in ("task", "persona")}
        template = self.rng.choice(talk()["inject"]).replace("{{", "{").replace("}}", "}")
        player = self.drawer.fill(template, known | self.about)
        reply = self.voice.flavour(say_line("deflect", self.drawer, self.about), self.rng)
        self._add(Kind.INJECTION, player, reply, [], ".*", reject=_SLIPS)

    def chat(self) -> None:
        """Talk for its own sake."""
        group = self.rng.choice(smalltalk())
        player = restyle(self.drawer.fill(self.rng.choice(group.prompts), self.about), self.drawer)
        reply = sentence_case(self.drawer.fill(self.rng.choice(group.replies), self.about))
        self._add(Kind.SMALLTALK, player, self.voice.flavour(reply, self.rng), [], ".*")

    def _tellable(self) -> list[Item]:
        return [item for item in self.items.values() if item.told()]

    def _siblings(self, item: Item) -> list[Item]:
        return [each for each in self.items.values() if each.fact is item.fact and each.block_id != item.block_id]

    def _pick_fact(self) -> tuple[Item, Attribute]:
        """Not asked before where possible, each layer alike."""
        pairs = [(item, attribute) for item in self._tellable() for attribute in item.told()]
        fresh = [pair for pair in pairs if (pair[0].block_id, pair[1].slot) not in self.asked] or pairs
        layer = self.rng.choice(sorted({item.layer for item, _ in fresh}))
        return self.rng.choice([pair for pair in fresh if pair[0].layer == layer])

    def _other_value(self, item: Item, attribute: Attribute, others: list[Value]) -> Value:
        taken = others + [each.values[attribute.slot] for each in self._siblings(item) if attribute.slot in each.values]
        taken += [value for slot, value in item.values.items() if slot != attribute.slot]
        return self.drawer.draw_apart(attribute.pool, [*taken, item.key])

    def _add_fact(self, item: Item, attribute: Attribute, player: str, kind: Kind | None = None) -> None:
        item = self.items[item.block_id]
        reply = self.voice.flavour(tell(item, attribute, self.drawer), self.rng)
        self._add(kind or _kind(item), player, reply, [item], item.values[attribute.slot].accept)
        self.asked.add((item.block_id, attribute.slot))

    def _add(
        self, kind: Kind, player: str, reply: str, needs: list[Item], accept: str, reject: tuple[str, ...] = ()
    ) -> None:
        ids = tuple(dict.fromkeys(item.block_id for item in needs))
        self.turns.append(SceneTurn(player=player, kind=kind, needs=ids, accept=(accept,), reject=reject, reply=reply))


_Pair = tuple[Callable[[], None], Callable[[], None]]
_OPENERS = {
    *("Did", "You", "Under", "Was", "Should", "Must", "Why", "Before", "After", "Into", "Behind", "Through", "Against"),
    *(
        "What",
        "Where",
        "Who",
        "How",
        "When",
        "Which",
        "Is",
        "Does",
        "Do",
        "Can",
        "At",
        "On",
        "In",
        "Whose",
        "Whom",
        "If",
    ),
    *("Could", "May", "Might", "By", "To", "From", "Has", "Have", "Are", "Tell", "Would", "For", "With", "That", "My"),
}


def _continued(text: str) -> str:
    """In mid-sentence: question words lose their capital, names keep it."""
    return text[0].lower() + text[1:] if text.split()[0] in _OPENERS else text


def _closed(text: str) -> str:
    return text if text[-1] in ".?!" else f"{text}?"


def _kind(item: Item) -> Kind:
    return Kind(item.layer)


def _all_of(patterns: Sequence[str]) -> str:
    return "(?s)" + "".join(f"(?=.*(?:{pattern}))" for pattern in patterns)
