"""A scripted talk, read from a YAML file::

title: The lamp turns green
sampling: {max_tokens: 48}
steps:
  - note: Rowan asks before anything has happened.
  - say: {npc: wick, text: "What colour is the signal lamp?", expect: [red]}
  - set: places/basin/conditions/lamp=The signal lamp is green.
  - advance: 10
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple, Self, TypeVar

from pydantic import AfterValidator, Field, ValidationError, model_validator

from npc_engine.config import SamplingParams
from npc_engine.errors import UserError
from npc_engine.world import Record, WorldState, yaml_document
from npc_engine.world.entities import one_line
from npc_engine.world.mistakes import mistakes
from npc_engine.world.models import Key, Text
from npc_engine.world.references import Path as FieldPath

T = TypeVar("T")

_MAX_MINUTES = 10 * 365 * 24 * 60


class ScenarioError(UserError):
    """A scenario that can't be read or played. The message starts with ``file:line:``."""


class SayStep(NamedTuple):
    """The player says `text` to an NPC; the answer should match all `patterns`."""

    line: int
    npc: str
    text: str
    patterns: tuple[re.Pattern[str], ...]


class SetStep(NamedTuple):
    """The world changes: ``pointer=value``."""

    line: int
    assignment: str


class AdvanceStep(NamedTuple):
    """Game time passes."""

    line: int
    minutes: int


class NoteStep(NamedTuple):
    """A text for whoever watches."""

    line: int
    text: str


Step = SayStep | SetStep | AdvanceStep | NoteStep


@dataclass(frozen=True, slots=True)
class Scenario:
    """Steps in order. A step's `line` is where its file has it."""

    path: Path
    title: str
    player: str
    sampling: SamplingParams
    steps: tuple[Step, ...]


def load_scenario(path: Path | str) -> Scenario:
    """Read a scenario; :class:`ScenarioError` names its first problem and counts the others."""
    path = Path(path)
    try:
        source = path.read_bytes()
    except OSError as error:
        raise ScenarioError(f"{path}:1: scenario: can't be read ({error.strerror}); check the path") from error
    document = yaml_document.parse(source)
    problems = [(line, field, message) for line, field, message in document.errors]
    if not problems:
        try:
            return _compose(path, document, _ScenarioFile.model_validate(document.data))
        except ValidationError as error:
            found = mistakes(error, _ScenarioFile, document.raw)
            problems = [(document.line(mistake.path), mistake.path, mistake.message) for mistake in found]
    (line, field, message), *others = sorted(problems, key=lambda problem: problem[0])
    more = f" (and {len(others)} more)" if others else ""
    raise ScenarioError(one_line(f"{path}:{line}: {_field(field)}: {message}{more}"))


def rehearse(scenario: Scenario, state: WorldState) -> None:
    """Go through all steps on a copy of `state`, without a model.

    :class:`ScenarioError` names the first NPC, player or change that does not exist when its turn comes.
    """
    state = state.copy()
    for step in scenario.steps:
        try:
            match step:
                case SayStep(_, npc, _, _):
                    state.find_npc(npc)
                case SetStep(_, assignment):
                    state.apply([state.parse_assignment(assignment)])
                case AdvanceStep(_, minutes):
                    state.advance(minutes)
                case NoteStep():
                    pass
        except UserError as error:
            raise ScenarioError(f"{scenario.path}:{step.line}: {error}") from error


def _regular_expression(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"{text!r} is no regular expression: {error}") from None
    return text


def _not_empty(entries: tuple[T, ...]) -> tuple[T, ...]:
    # Not min_length: where an entry is wrong, pydantic would call the list too short as well.
    if not entries:
        raise ValueError("is empty; it needs at least one entry")
    return entries


class _Say(Record):
    npc: Text
    text: Text
    expect: Annotated[
        tuple[Annotated[Text, AfterValidator(_regular_expression)], ...],
        Field(strict=False),
        AfterValidator(_not_empty),
    ] = ()


class _Step(Record):
    say: _Say | None = None
    set: Text | None = None
    advance: Annotated[int, Field(ge=0, le=_MAX_MINUTES)] | None = None
    note: Text | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if len(self.model_fields_set) != 1 or all(getattr(self, name) is None for name in self.model_fields_set):
            raise ValueError("a step is one of say, set, advance and note; begin each with its own -")
        return self


class _Sampling(Record):
    temperature: Annotated[float, Field(ge=0)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Field(ge=0.1)] = 1.0
    max_tokens: Annotated[int, Field(ge=1)] = SamplingParams().max_tokens
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0


class _ScenarioFile(Record):
    title: Text
    player: Key = "player"
    sampling: _Sampling = _Sampling()
    steps: Annotated[tuple[_Step, ...], Field(strict=False), AfterValidator(_not_empty)]


def _compose(path: Path, document: yaml_document.YamlDocument, file: _ScenarioFile) -> Scenario:
    steps = tuple(_step(document.line(("steps", index)), step) for index, step in enumerate(file.steps))
    return Scenario(path, file.title, file.player, SamplingParams(**file.sampling.model_dump()), steps)


def _step(line: int, step: _Step) -> Step:
    if step.say is not None:
        patterns = tuple(re.compile(text, re.IGNORECASE) for text in step.say.expect)
        return SayStep(line, step.say.npc, step.say.text, patterns)
    if step.set is not None:
        return SetStep(line, step.set)
    if step.advance is not None:
        return AdvanceStep(line, step.advance)
    assert step.note is not None
    return NoteStep(line, step.note)


def _field(path: FieldPath) -> str:
    """``steps[2].say.npc``; ``file`` for the file as a whole."""
    return "".join(_parts(path)).removeprefix(".") or "file"


def _parts(path: FieldPath) -> Iterator[str]:
    for part in path:
        yield f"[{part}]" if isinstance(part, int) else f".{part}"
