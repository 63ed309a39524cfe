"""What a world is made of, as validated and immutable records.

The same records are read from YAML and held by a running game. A field that may be left out has a default, and a
document always shows it, so that a game can replace it.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator
from pydantic_core.core_schema import ValidationInfo

from npc_engine.world.audience import Audience
from npc_engine.world.entities import KEY_PATTERN

FORMAT: Final = 1
"""Version of the YAML files and of the JSON document."""

MAX_DAY: Final = 1_000_000


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("holds half of a surrogate pair; write the whole character") from None
    return text


Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1), AfterValidator(_encodable)]
"""A text that says something."""

OptionalText = Annotated[str, StringConstraints(strip_whitespace=True), AfterValidator(_encodable)]
"""A text that may be empty; an empty one has no block."""

Key = Annotated[str, StringConstraints(pattern=rf"^(?:{KEY_PATTERN})$")]
PersonKey = Annotated[str, StringConstraints(pattern=rf"^(?:player/)?(?:{KEY_PATTERN})$")]
"""A character's key, or ``player/<key>``."""

Importance = Annotated[int, Field(ge=1, le=10)]
Day = Annotated[int, Field(ge=1, le=MAX_DAY)]


class Record(BaseModel):
    """Base of all records: no unknown field, no silent conversion, no change after construction."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class WorldInfo(Record):
    """What everybody knows about the world."""

    id: Key
    title: Text
    setting: Text


class WorldTime(Record):
    """Day from 1, minute of the day from 0."""

    day: Day
    minute: Annotated[int, Field(ge=0, lt=24 * 60)]


class Place(Record):
    """A place. `exits`: place key -> sentence. `conditions`: name -> sentence that holds now; games change these."""

    name: Text
    description: Text
    exits: dict[Key, Text] = {}
    conditions: dict[Key, Text] = {}


class Stage(Record):
    """A step of a quest. Of those who know the quest, `audience` says who has heard of this step."""

    id: Key
    text: Text
    audience: Audience = "everyone"


class Quest(Record):
    """Stages in order; `stage` is the current one's id."""

    title: Text
    stages: Annotated[tuple[Stage, ...], Field(strict=False)]
    stage: Key
    audience: Audience = "everyone"

    @field_validator("stages")
    @classmethod
    def _distinct(cls, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
        # Not min_length: where a stage is wrong, pydantic would call the list too short as well.
        if not stages:
            raise ValueError("is empty; it needs at least one stage")
        ids = [stage.id for stage in stages]
        for stage_id in ids:
            if ids.count(stage_id) > 1:
                raise ValueError(f'two stages have the id "{stage_id}"; rename one')
        return stages

    @field_validator("stage")
    @classmethod
    def _exists(cls, stage: str, info: ValidationInfo) -> str:
        ids = [each.id for each in info.data.get("stages", ())]
        if ids and stage not in ids:
            raise ValueError(f'no stage "{stage}"; the stages are: {", ".join(ids)}')
        return stage


class Lore(Record):
    """A fact of the world; the least important is left out first when the prompt is full."""

    title: Text
    text: Text
    audience: Audience = "everyone"
    importance: Importance = 5


class Sheet(Record):
    """Who a character is, written to it ("You are ..."). Each section is one block."""

    identity: Text
    personality: Text
    speech_style: OptionalText = ""
    background: OptionalText = ""
    goals: OptionalText = ""
    knowledge: OptionalText = ""
    relations: dict[Key, Text] = {}


class Memory(Record):
    """What a character remembers, in its own words ("I saw ...")."""

    text: Text
    day: Day | None = None
    importance: Importance = 5
    people: Annotated[tuple[PersonKey, ...], Field(strict=False)] = ()
    place: Key | None = None


class Character(Record):
    """An NPC. `place` is where it is; `home` is where it belongs, and decides what of ``place:<key>`` it knows.

    `fallback` is said when no reply could be made.
    """

    name: Text
    role: Text
    place: Key
    home: Key = ""
    sheet: Sheet
    memories: Annotated[tuple[Memory, ...], Field(strict=False)] = ()
    fallback: OptionalText = ""

    @model_validator(mode="before")
    @classmethod
    def _at_home(cls, data: Any) -> Any:
        """Who has no home belongs where they start."""
        if isinstance(data, dict) and "place" in data and "home" not in data:
            return {**data, "home": data["place"]}
        return data


class Player(Record):
    """A person behind a keyboard, as the NPCs see them."""

    name: Text
    description: OptionalText = ""
    place: Key


class Start(Record):
    """Where and when a new game begins. `time` is ``"HH:MM"``."""

    day: Day = 1
    time: str
    player: Player

    @field_validator("time")
    @classmethod
    def _is_clock(cls, time: str) -> str:
        hours, colon, minutes = time.partition(":")
        is_clock = colon and len(hours) == len(minutes) == 2 and f"{hours}{minutes}".isascii()
        if not (is_clock and f"{hours}{minutes}".isdigit() and int(hours) < 24 and int(minutes) < 60):
            raise ValueError(f'{time!r} is no time of day; write it as "HH:MM", for example "19:05"')
        return time


class WorldFile(Record):
    """``world.yaml``."""

    format: int
    id: Key
    title: Text
    setting: Text
    start: Start
    places: Annotated[dict[Key, Place], Field(min_length=1)]
    quests: dict[Key, Quest] = {}

    @field_validator("format")
    @classmethod
    def _is_read(cls, version: int) -> int:
        if version != FORMAT:
            raise ValueError(f"this version of the engine reads format {FORMAT}")
        return version


class World(Record):
    """A world as its author wrote it: what a new game starts from."""

    info: WorldInfo
    start: Start
    places: dict[Key, Place]
    quests: dict[Key, Quest]
    lore: dict[Key, Lore]
    characters: dict[Key, Character]

    @classmethod
    def compose(cls, file: WorldFile, lore: dict[str, Lore], characters: dict[str, Character]) -> Self:
        """A world from its files."""
        info = WorldInfo(id=file.id, title=file.title, setting=file.setting)
        return cls(
            info=info, start=file.start, places=file.places, quests=file.quests, lore=lore, characters=characters
        )
