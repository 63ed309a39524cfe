"""The same scene, told differently: other turns first, blocks in other forms of the engine, company around them."""

from __future__ import annotations

import random
from typing import Final

from npc_engine.dialogue.render import BlockText
from npc_engine.tuning.samples import SampleTurn
from npc_engine.tuning.scene_prompt import blocks_by_id
from npc_engine.tuning.scenes import Kind, Scene, SceneTurn

_SHEET_LABELS: Final = ("What you know: ", "Your past: ", "Your personality: ", "What you want: ", "People you know: ")
_MEMORY: Final = "Your memory: "
_TIMES: Final = ("morning", "noon", "afternoon", "evening", "night")
_PLAYERS: Final = (
    *("Robin", "Sasha", "Noor", "Kim", "Ari", "Jules", "Wren", "Ilya", "Tam", "Quinn", "Remy", "Bao", "Luz", "Oyin"),
    *("a traveller", "a stranger", "the courier", "the new recruit", "a customer"),
)


def vary(scene: Scene, rng: random.Random) -> tuple[SampleTurn, ...]:
    """The scene's turns, each with its blocks: in a shuffled order as far as meaning allows, some left out."""
    order = _order(scene, rng)
    dress = _Dress(scene, rng)
    turns = []
    for index in order:
        turn = scene.turns[index]
        turns.append(SampleTurn(turn.player, turn.reply, *dress.blocks_and_sources(index)))
    return tuple(turns)


def _order(scene: Scene, rng: random.Random) -> list[int]:
    """Indices of turns. A follow-up stays behind the turn before it; updates keep apart what comes before and after."""
    changes = sorted({update.before_turn for update in scene.updates})
    stretches: dict[int, list[list[int]]] = {}
    for index, turn in enumerate(scene.turns):
        if not turn.reply:
            break
        groups = stretches.setdefault(sum(change <= index for change in changes), [])
        if groups and _leans_on_history(turn):
            groups[-1].append(index)
        else:
            groups.append([index])
    order: list[int] = []
    for groups in stretches.values():
        rng.shuffle(groups)
        kept = [group for group in groups if rng.random() < 0.9] or groups[:1]
        order += (index for group in kept for index in group)
    return order


def _leans_on_history(turn: SceneTurn) -> bool:
    first = turn.player.lower().split()[:4]
    return turn.kind is Kind.FOLLOWUP or bool({"and", "then", "so", "but", "he", "she", "they", "it"} & set(first))


class _Dress:
    """The forms that this telling of the scene gives to its blocks; the same in all its turns."""

    def __init__(self, scene: Scene, rng: random.Random) -> None:
        self._scene = scene
        self._labels = rng.random() < 0.35
        self._days = rng.random() < 0.3
        self._merges = rng.random() < 0.25
        self._seed = rng.random()
        self._tail = _company(rng) if rng.random() < 0.5 else []

    def blocks_and_sources(self, turn: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """As in :class:`SampleTurn`."""
        blocks = blocks_by_id(self._scene, turn)
        dressed = {name: self._dressed(block, i) for i, (name, block) in enumerate(blocks.items())}
        texts = list(dressed.values())
        if self._merges:
            texts = self._merged(texts)
        needed = [dressed[name].rstrip("\n") for name in self._scene.turns[turn].needs]
        sources = tuple(text for text in texts if any(each in text for each in needed))
        return (*texts, *self._tail), sources

    def _dressed(self, block: BlockText, index: int) -> str:
        rng = random.Random(f"{self._seed} {index}")
        text = block.text
        if self._days and text.startswith(_MEMORY):
            return f"Your memory from day {rng.randint(1, 40)}: {text.removeprefix(_MEMORY)}"
        is_plain = not text.startswith(("{", "[", "You ", "Your ", "What ", "How ", "People "))
        if self._labels and block.section.startswith("sheet/") and is_plain:
            return rng.choice(_SHEET_LABELS) + text
        return text

    def _merged(self, texts: list[str]) -> list[str]:
        """Some neighbours become one block: a section of a sheet holds several facts."""
        rng = random.Random(f"{self._seed} merge")
        merged: list[str] = []
        for text in texts:
            if merged and rng.random() < 0.4:
                merged[-1] = merged[-1].rstrip("\n") + " " + text
            else:
                merged.append(text)
        return merged


def _company(rng: random.Random) -> list[str]:
    """What the engine puts behind the place: the time, and who speaks."""
    tail = [
        f"It is day {rng.randint(1, 60)} now, and the time is {rng.choice(_TIMES)}.\n",
        f"The person who speaks to you is {rng.choice(_PLAYERS)}.\n",
    ]
    return tail if rng.random() < 0.7 else tail[1:]
