"""World time: days, minutes, and the coarse words an NPC has for them."""

from __future__ import annotations

from typing import Final

from npc_engine.world.models import MAX_DAY, WorldTime

MINUTES_PER_DAY: Final = 24 * 60

_PARTS_OF_DAY: Final = (
    (5 * 60, "night"),
    (8 * 60, "early morning"),
    (12 * 60, "morning"),
    (14 * 60, "midday"),
    (18 * 60, "afternoon"),
    (21 * 60, "evening"),
    (MINUTES_PER_DAY, "late evening"),
)


def advance(time: WorldTime, minutes: int) -> WorldTime:
    """The time `minutes` later; ValueError when `minutes` is negative or leads past the last day."""
    days, minute = divmod(time.minute + minutes, MINUTES_PER_DAY)
    if minutes < 0 or time.day + days > MAX_DAY:
        raise ValueError(f"can't advance by {minutes} minutes from day {time.day}; time runs forward to day {MAX_DAY}")
    return WorldTime(day=time.day + days, minute=minute)


def part_of_day(time: WorldTime) -> str:
    """``late evening`` and the like. Changes seven times a day, so that a block made of it is rarely encoded again."""
    return next(name for end, name in _PARTS_OF_DAY if time.minute < end)


def phrase(time: WorldTime) -> str:
    """``Day 1, late evening``."""
    return f"Day {time.day}, {part_of_day(time)}"


def clock(time: WorldTime) -> str:
    """``19:05``."""
    return f"{time.minute // 60:02}:{time.minute % 60:02}"


def parse_clock(text: str) -> int:
    """``19:05`` -> 1145. The text has passed :class:`~npc_engine.world.models.Start`'s check."""
    hours, minutes = text.split(":")
    return int(hours) * 60 + int(minutes)
