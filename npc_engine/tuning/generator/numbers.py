"""Numbers and times of day, in words or digits, with patterns that take both."""

from __future__ import annotations

import random
from typing import Final

_SMALL: Final = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS: Final = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_PARTS: Final = ("in the morning", "in the evening", "at night", "in the afternoon")


def in_words(number: int) -> str:
    """English for 0 to 99."""
    if number < 20:
        return _SMALL[number]
    tens, ones = divmod(number, 10)
    return _TENS[tens - 2] + (f"-{_SMALL[ones]}" if ones else "")


def draw_number(rng: random.Random, low: int, high: int) -> str:
    """Words or digits, digits only from 100."""
    number = rng.randint(low, high)
    return in_words(number) if number < 100 and rng.random() < 0.6 else str(number)


def number_pattern(text: str) -> str:
    """Matches the number in words and in digits, but not as a part of a longer one."""
    forms = {text}
    for number in range(100):
        if text in (in_words(number), str(number)):
            forms = {in_words(number), str(number)}
    return rf"(?<![\w-])(?:{'|'.join(sorted(forms))})(?![\w-])"


def draw_hour(rng: random.Random) -> tuple[str, str]:
    """A time of day and its pattern."""
    hour = rng.randint(1, 12)
    match rng.randrange(4):
        case 0:
            return f"{in_words(hour)} {rng.choice(_PARTS)}", number_pattern(in_words(hour))
        case 1:
            text = f"{rng.randint(0, 23):02d}:{rng.choice(('00', '15', '30', '45', '10', '20'))}"
            return text, rf"\b{text}\b"
        case 2:
            return f"half past {in_words(hour)}", rf"half past {number_pattern(in_words(hour))}"
        case _:
            return f"a quarter to {in_words(hour)}", rf"quarter to {number_pattern(in_words(hour))}"
