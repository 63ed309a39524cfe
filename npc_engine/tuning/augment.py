"""Counterfactual scenes: other names, numbers and colours, other orders, distractors, and everything still true.

A model that is tuned on them can't learn the answers, only where to look for them.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from npc_engine.tuning.augment_classes import CAPITALIZED_ONLY, NAMES_OF_CLASSES, ClassContext, draw_class
from npc_engine.tuning.augment_names import find_names, fresh_names
from npc_engine.tuning.augment_numbers import draw_numbers, is_arithmetic
from npc_engine.tuning.augment_pools import CLASSES, COMMON, COMPASS, MONTHS, NUMBER_WORDS, WEEKDAYS
from npc_engine.tuning.augment_text import TOKEN, Run, Substitution, runs
from npc_engine.tuning.scenes import Kind, Scene, SceneBlock, SceneTurn, check_scene

_CLASS_RATE = 0.7
_LONG_PATTERN = 200  # the stock phrases for "I don't know", which hold nothing of the scene
_CLASS_WORDS = frozenset(
    {word for groups in CLASSES.values() for group in groups for forms in group for word in forms}
    | {word for pair in NUMBER_WORDS.values() for word in pair}
    | {word + end for word in (*WEEKDAYS, *MONTHS, *COMPASS) for end in ("", "s", "ern")}
)


class Augmented(NamedTuple):
    """`chosen` are the classes that were drawn and have words in the scene, `applied` those that were kept."""

    scene: Scene
    chosen: frozenset[str]
    applied: frozenset[str]


def augment(scene: Scene, rng: random.Random) -> Scene:
    """Another scene that is as true to itself as this one: names, numbers and the like replaced, blocks shuffled.

    Where a replacement would make the scene wrong, fewer are made; in the worst case only the order changes.
    """
    return augment_with_classes(scene, rng).scene


def augment_with_classes(scene: Scene, rng: random.Random) -> Augmented:
    """Like :func:`augment`, and says what was replaced."""
    problems = len(check_scene(scene))
    view = _View(scene)
    classes = _draw_classes(view, rng)
    if names := fresh_names(view.names, view.words, rng):
        classes = {"names": _Class(names), **classes}

    def attempt(applied: Iterable[str]) -> Scene | None:
        made = _substitution([classes[name] for name in applied])
        new = _rewrite(scene, made)
        return new if new and len(check_scene(new)) <= problems and _same_matches(scene, new) else None

    kept = list(classes)
    new = attempt(kept)
    if new is None:  # find those that go together
        kept, new = [], scene
        for name in classes:
            if (better := attempt([*kept, name])) is not None:
                kept, new = [*kept, name], better
    return Augmented(_reorder(new, rng), frozenset(classes), frozenset(kept))


class _Class(NamedTuple):
    words: dict[str, str]
    number: Callable[[int], int] | None = None


def _substitution(classes: Sequence[_Class]) -> Substitution:
    words = {old: new for chosen in classes for old, new in chosen.words.items()}
    number = next((chosen.number for chosen in classes if chosen.number is not None), None)
    return Substitution(words, number, CAPITALIZED_ONLY)


class _View:
    """What the choices need to know of a scene, gathered once."""

    def __init__(self, scene: Scene) -> None:
        blocks = [block.text for block in (*scene.blocks, *scene.private_to_others)]
        self.blocks = [*blocks, *(update.text for update in scene.updates)]
        self.replies = [turn.reply for turn in scene.turns]
        self.asked = [turn.player for turn in scene.turns]
        self.texts = [*self.blocks, *self.replies, *self.asked]
        self.words = {word.lower() for text in self.texts for word in TOKEN.findall(text)}
        self.runs = [run for pattern in _short_patterns(scene.turns) for run in runs(pattern)]
        found = find_names((*self.blocks, *self.replies), self.asked, scene.character.name, _CLASS_WORDS)
        self.names = _safe_names(found, self.runs, self.words)

    @property
    def parts(self) -> set[str]:
        """Runs of letters in patterns that are, or may be, parts of longer words."""
        return {run.text.lower() for run in self.runs if run.is_part or run.text.lower() not in self.words}


def _short_patterns(turns: Iterable[SceneTurn]) -> Iterator[str]:
    for turn in turns:
        yield from (pattern for pattern in (*turn.accept, *turn.reject) if len(pattern) < _LONG_PATTERN)


def _safe_names(names: set[str], pattern_runs: Sequence[Run], words: set[str]) -> set[str]:
    """Names that no pattern cuts up, and the short forms by which patterns call them."""
    safe = set(names)
    for run in pattern_runs:
        part = run.text.lower()
        if part in names and not run.is_part:
            continue
        longer = {name for name in safe if part in name or name in part}
        if not longer or len(part) < 3 or part.isdecimal():
            continue
        is_short_form = not run.is_part and part not in words and part not in COMMON and part not in _CLASS_WORDS
        if is_short_form and all(name.startswith(part) for name in longer):
            safe.add(part)
        elif run.is_part or part not in words or any(name.startswith(part) for name in longer):
            safe -= longer
    return safe


def _draw_classes(view: _View, rng: random.Random) -> dict[str, _Class]:
    """Class → its bijection, for the classes that are switched on and have words in the scene."""
    drawn: dict[str, _Class] = {}
    if rng.random() < _CLASS_RATE and not is_arithmetic(view.blocks, view.replies):
        is_cut = any(run.is_part and (run.text.isdecimal() or run.text.lower() in _CLASS_WORDS) for run in view.runs)
        numbers = None if is_cut else draw_numbers(view.texts, rng)
        if numbers is not None:
            drawn["numbers"] = _Class(numbers.words, numbers)
    context = ClassContext("\n".join(view.texts), view.parts)
    for name in NAMES_OF_CLASSES:
        if rng.random() < _CLASS_RATE and (words := draw_class(name, context, rng)):
            drawn[name] = _Class(words)
    return {name: drawn[name] for name in drawn if name == "numbers" or view.words & drawn[name].words.keys()}


def _rewrite(scene: Scene, made: Substitution) -> Scene | None:
    """The scene with everything replaced; None where a pattern does not survive it."""

    def blocks(of: tuple[SceneBlock, ...]) -> tuple[SceneBlock, ...]:
        return tuple(block.model_copy(update={"text": made.text(block.text)}) for block in of)

    def turn(old: SceneTurn) -> SceneTurn:
        changed = {"player": made.text(old.player), "reply": made.text(old.reply)}
        patterns = {"accept": _patterns(old.accept, made), "reject": _patterns(old.reject, made)}
        return old.model_copy(update=changed | patterns)

    character = {"name": made.text(scene.character.name), "sheet": blocks(scene.character.sheet)}
    new = scene.model_copy(
        update={
            "world": blocks(scene.world),
            "location": blocks(scene.location),
            "character": scene.character.model_copy(update=character | {"role": made.text(scene.character.role)}),
            "memories": blocks(scene.memories),
            "private_to_others": blocks(scene.private_to_others),
            "turns": tuple(turn(old) for old in scene.turns),
            "updates": tuple(old.model_copy(update={"text": made.text(old.text)}) for old in scene.updates),
        }
    )
    try:
        for pattern in _short_patterns(new.turns):
            re.compile(pattern, re.IGNORECASE)
    except re.error:
        return None
    return new


def _patterns(patterns: tuple[str, ...], made: Substitution) -> tuple[str, ...]:
    return tuple(made.pattern(pattern) if len(pattern) < _LONG_PATTERN else pattern for pattern in patterns)


def _same_matches(old: Scene, new: Scene) -> bool:
    """True if every pattern that was rewritten, or whose texts were, matches the same texts as before."""
    pairs = [(before, after) for before, after in zip(_facts(old), _facts(new), strict=True) if before != after]
    for before, after in zip(_short_patterns(old.turns), _short_patterns(new.turns), strict=True):
        was, now = re.compile(before, re.IGNORECASE), re.compile(after, re.IGNORECASE)
        if any((was.search(one) is None) != (now.search(other) is None) for one, other in pairs):
            return False
    return True


def _facts(scene: Scene) -> list[str]:
    blocks = [block.text for block in (*scene.blocks, *scene.private_to_others)]
    return [*blocks, *(update.text for update in scene.updates), *(turn.reply for turn in scene.turns)]


def _reorder(scene: Scene, rng: random.Random) -> Scene:
    """The blocks shuffled within their sections, and a few that nobody needs left out."""
    dropped = _dropped(scene, rng)

    def shuffled(blocks: tuple[SceneBlock, ...]) -> tuple[SceneBlock, ...]:
        kept = [block for block in blocks if block.id not in dropped] or list(blocks)
        return tuple(rng.sample(kept, len(kept)))

    sheet = shuffled(scene.character.sheet)
    return scene.model_copy(
        update={
            "world": shuffled(scene.world),
            "location": shuffled(scene.location),
            "character": scene.character.model_copy(update={"sheet": sheet}),
            "memories": shuffled(scene.memories),
        }
    )


def _dropped(scene: Scene, rng: random.Random) -> set[str]:
    """Up to a third of the blocks that no turn needs, of those that nothing in the conversation touches."""
    used = {name for turn in scene.turns for name in turn.needs} | {update.block for update in scene.updates}
    unneeded = [block for block in scene.blocks if block.id not in used]
    spoken = _content(turn.reply + " " + turn.player for turn in scene.turns)
    spoken |= _content(block.text for block in scene.private_to_others)
    held = _content(block.text for block in scene.blocks if block.id in used)
    free = [block.id for block in unneeded if not (_content([block.text]) & spoken) - held]
    most = min(len(unneeded) // 3, len(free))
    return set(rng.sample(free, rng.randint(0, most)))


def _content(texts: Iterable[str]) -> set[str]:
    """The words that carry a text's matter: long ones, names and numbers, plurals aside."""
    words = (word for text in texts for word in TOKEN.findall(text))
    return {word.lower().removesuffix("s") for word in words if len(word) > 4 or not word.islower()}


def with_distractors(scene: Scene, others: Sequence[Scene], rng: random.Random, max_blocks: int) -> Scene:
    """The scene with up to `max_blocks` blocks of others among its world and memories, none of which answers a turn."""
    answers = [
        re.compile(pattern, re.IGNORECASE)
        for turn in scene.turns
        if turn.kind.is_answerable or turn.kind is Kind.LEAK
        for pattern in (turn.accept if turn.kind.is_answerable else turn.reject)
    ]
    view = _View(scene)
    avoided = view.names | {word.lower() for word in TOKEN.findall(scene.character.name)}
    open_questions = _content(turn.player for turn in scene.turns if turn.kind in {Kind.UNKNOWN, Kind.LEAK})
    questions = [_content([turn.player]) for turn in scene.turns]
    held = {block.text for block in scene.blocks}

    def is_welcome(text: str) -> bool:
        matter = _content([text])
        if matter & open_questions or any(len(matter & question) > 1 for question in questions):
            return False  # it might answer after all, or say otherwise
        if text in held or _SITUATED.search(text) or any(word.lower() in avoided for word in TOKEN.findall(text)):
            return False
        return not any(answer.search(text) for answer in answers)

    added: dict[str, list[SceneBlock]] = {"world": [], "memories": []}
    fresh_ids = (name for name in map("x{}".format, itertools.count(1)) if name not in {b.id for b in scene.blocks})
    for other in rng.sample(others, min(len(others), 4 * max_blocks)):
        if sum(map(len, added.values())) == max_blocks:
            break
        candidates = [("world", block) for block in other.world] + [("memories", block) for block in other.memories]
        welcome = [(section, block.text) for section, block in candidates if is_welcome(block.text)]
        if other.id != scene.id and welcome:
            section, text = rng.choice(welcome)
            held.add(text)
            added[section].append(SceneBlock(id=next(fresh_ids), text=text))
    return scene.model_copy(update={key: _mixed(getattr(scene, key), more, rng) for key, more in added.items()})


_SITUATED = re.compile(r"\b(?:right now|today|tonight|speaks to you|day \d+|your name|you are)\b", re.IGNORECASE)


def _mixed(blocks: tuple[SceneBlock, ...], more: list[SceneBlock], rng: random.Random) -> tuple[SceneBlock, ...]:
    mixed = list(blocks)
    for block in more:
        mixed.insert(rng.randint(0, len(mixed)), block)
    return tuple(mixed)
