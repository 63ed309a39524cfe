"""Scenes: an NPC with its blocks, what players say to it, and how to tell whether a reply passes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, BaseModel, Field, ValidationError

from npc_engine.errors import SceneError


class Kind(StrEnum):
    """What a turn asks for."""

    WORLD = "world"
    LOCATION = "location"
    SHEET = "sheet"
    MEMORY = "memory"
    MULTI = "multi"  # two blocks together
    UPDATE = "update"  # a block that was edited in mid-conversation
    UNKNOWN = "unknown"  # nothing that the NPC knows
    LEAK = "leak"  # something that only others know
    INJECTION = "injection"
    SMALLTALK = "smalltalk"
    FOLLOWUP = "followup"  # needs the turns before; in training data only

    @property
    def is_answerable(self) -> bool:
        """True if the answer stands in blocks, which the turn names."""
        return self in _ANSWERABLE


_ANSWERABLE = {Kind.WORLD, Kind.LOCATION, Kind.SHEET, Kind.MEMORY, Kind.MULTI, Kind.UPDATE}


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern, re.IGNORECASE)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
    return pattern


Pattern = Annotated[str, AfterValidator(_compiles)]
"""A regular expression; a reply matches when it is found in it, whatever the case."""


class _Part(BaseModel, extra="forbid", frozen=True):
    pass


class SceneBlock(_Part):
    id: str
    text: Annotated[str, Field(min_length=1)]


class SceneCharacter(_Part):
    name: str
    role: str
    sheet: tuple[SceneBlock, ...]


class SceneTurn(_Part):
    """`needs` are the ids of the blocks that hold the answer; `reply` is a reference."""

    player: Annotated[str, Field(min_length=1)]
    kind: Kind
    needs: tuple[str, ...] = ()
    accept: Annotated[tuple[Pattern, ...], Field(min_length=1)]
    reject: tuple[Pattern, ...] = ()
    reply: str = ""

    def passes(self, reply: str) -> bool:
        """True if some accept pattern matches and no reject pattern does."""
        return _matches(self.accept, reply) and not _matches(self.reject, reply)


class SceneUpdate(_Part):
    """Before this turn (from 0) the block gets another text."""

    before_turn: Annotated[int, Field(ge=0)]
    block: str
    text: Annotated[str, Field(min_length=1)]


class Scene(_Part):
    """One conversation. `private_to_others` is never in the prompt."""

    id: str
    genre: str
    world: tuple[SceneBlock, ...]
    location: tuple[SceneBlock, ...]
    character: SceneCharacter
    memories: tuple[SceneBlock, ...]
    private_to_others: tuple[SceneBlock, ...] = ()
    turns: Annotated[tuple[SceneTurn, ...], Field(min_length=1)]
    updates: tuple[SceneUpdate, ...] = ()

    @property
    def blocks(self) -> tuple[SceneBlock, ...]:
        """What the NPC knows at the start, in the order of a prompt."""
        return (*self.world, *self.character.sheet, *self.memories, *self.location)

    def texts_at(self, turn: int) -> dict[str, str]:
        """Block id → text when this turn begins, updates applied."""
        texts = {block.id: block.text for block in self.blocks}
        for update in self.updates:
            if update.before_turn <= turn:
                texts[update.block] = update.text
        return texts

    def all_texts(self) -> Iterator[str]:
        """Every text in the scene, patterns aside."""
        yield from (block.text for block in (*self.blocks, *self.private_to_others))
        yield from (update.text for update in self.updates)
        for turn in self.turns:
            yield from (turn.player, turn.reply)


class SceneProblem(NamedTuple):
    """`where` is the scene's id and the turn, counted from 0."""

    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


def load_scenes(path: Path) -> tuple[Scene, ...]:
    """Read a JSON Lines file. Raises :class:`SceneError` with ``file:line: field`` for the first mistake."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SceneError(f"{path}: can't be read ({error})") from error
    scenes = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            scenes.append(Scene.model_validate_json(line))
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"]) or "line"
            raise SceneError(f"{path}:{number}: {field}: {first['msg']}") from error
    if not scenes:
        raise SceneError(f"{path}: holds no scene; a scene is one JSON object a line")
    return tuple(scenes)


def check_scene(scene: Scene, *, is_evaluation: bool = False) -> list[SceneProblem]:
    """What a scene gets wrong beyond its form.

    Its own replies pass; an answerable turn's patterns match the blocks it needs; a leak's reject matches the secret.
    For evaluation, stricter: the patterns of an answerable turn match no other block, and no turn is a mere
    follow-up, since each has to be judged by itself.
    """
    problems = [SceneProblem(scene.id, text) for text in _name_problems(scene)]
    if problems:
        return problems
    for index, turn in enumerate(scene.turns):
        where = f"{scene.id} turn {index} ({turn.kind})"
        problems += [SceneProblem(where, text) for text in _turn_problems(scene, index, turn)]
        if is_evaluation:
            problems += [SceneProblem(where, text) for text in _evaluation_problems(scene, index, turn)]
    return problems


def shared_names(scenes: Iterable[Scene], others: Iterable[Scene]) -> set[str]:
    """Proper names that occur in both: capitalized in mid-sentence, and nowhere in lower case."""
    mine, theirs = list(scenes), list(others)
    common = {word for scene in (*mine, *theirs) for text in scene.all_texts() for word in _LOWER_CASE.findall(text)}
    return {name for name in _names(mine) & _names(theirs) if name.lower() not in common}


_LOWER_CASE = re.compile(r"\b[a-zà-ž][\wà-ž'’]*")
_NAME = re.compile(r"(?<=[a-zà-ž,;] )([A-ZÀ-Ž][a-zà-ž]{3,})")


def _names(scenes: list[Scene]) -> set[str]:
    return {name for scene in scenes for text in scene.all_texts() for name in _NAME.findall(text)}


def _name_problems(scene: Scene) -> Iterator[str]:
    ids = [block.id for block in scene.blocks]
    if len(set(ids)) < len(ids):
        yield "two blocks share an id"
    for update in scene.updates:
        if update.block not in ids:
            yield f"an update names the unknown block {update.block!r}"
        if update.before_turn >= len(scene.turns):
            yield f"an update comes before turn {update.before_turn}, which does not exist"
    for index, turn in enumerate(scene.turns):
        for name in turn.needs:
            if name not in ids:
                yield f"turn {index} needs the unknown block {name!r}"


def _turn_problems(scene: Scene, index: int, turn: SceneTurn) -> Iterator[str]:
    texts = scene.texts_at(index)
    if turn.reply and not turn.passes(turn.reply):
        yield f"its own reply does not pass: {turn.reply[:60]!r}"
    if turn.kind.is_answerable:
        if not turn.needs:
            yield "names no block that it needs"
        elif not _matches(turn.accept, " ".join(texts[name] for name in turn.needs)):
            yield "accept does not match the blocks it needs"
    if turn.kind is Kind.LEAK and not _matches(turn.reject, " ".join(b.text for b in scene.private_to_others)):
        yield "reject does not match the secret"


def _evaluation_problems(scene: Scene, index: int, turn: SceneTurn) -> Iterator[str]:
    if turn.kind is Kind.FOLLOWUP:
        yield "a follow-up is for training data"
    if not turn.kind.is_answerable:
        return
    for name, text in scene.texts_at(index).items():
        if name not in turn.needs and _matches(turn.accept, text):
            yield f"accept matches block {name!r}, which it does not need"


def _matches(patterns: Iterable[str], text: str) -> bool:
    return any(re.search(pattern, text, re.IGNORECASE) for pattern in patterns)
