"""A world of a given size, so that a benchmark says how long its prompt is instead of depending on a story."""

from __future__ import annotations

from npc_engine.world import World

_WORDS = (
    *("harbour", "lantern", "seven", "copper", "bells", "river", "warden", "quiet", "winter", "market", "stone"),
    *("bridge", "amber", "cloth", "northern", "road", "barley", "cellar", "old", "captain", "silver", "needle"),
    *("tower", "garden", "broken", "wheel", "morning", "ferry", "salt", "garrison", "letter", "green", "door"),
)


def synthetic_world(num_lore: int, words_per_lore: int) -> World:
    """One NPC in one place, and `num_lore` lore entries of `words_per_lore` words that everybody knows.

    The texts differ from each other, so that no two blocks are one.
    """
    return World.model_validate(
        {
            "info": {"id": "bench", "title": "Bench", "setting": "A world made to measure."},
            "quests": {},
            "start": {
                "day": 1,
                "time": "09:00",
                "player": {"name": "Robin", "description": "", "place": "hall"},
            },
            "places": {"hall": {"name": "the hall", "description": "A bare hall."}},
            "lore": {
                f"entry{i:03}": {"title": f"Entry {i}", "text": lore_text(i, words_per_lore)} for i in range(num_lore)
            },
            "characters": {
                "ada": {
                    "name": "Ada Reed",
                    "role": "the keeper of the hall",
                    "place": "hall",
                    "sheet": {"identity": "You keep the hall.", "personality": "You are calm."},
                }
            },
        }
    )


def lore_text(seed: int, num_words: int) -> str:
    """Sentences of ten words each, in an order that `seed` decides."""
    words = [_WORDS[(seed * 7 + i * (seed % 5 + 3) + i * i) % len(_WORDS)] for i in range(num_words)]
    sentences = (" ".join(words[i : i + 10]) for i in range(0, num_words, 10))
    return " ".join(sentence.capitalize() + "." for sentence in sentences)
