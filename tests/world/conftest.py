"""A small good world, as files and as a state."""

from __future__ import annotations

from pathlib import Path

import pytest

from npc_engine.world import WorldState, load_world

FILES = {
    "world.yaml": """\
format: 1
id: mill
title: The Mill
setting: A mill stands on a river.
start:
  day: 3
  time: "19:40"
  player:
    name: Rowan
    description: Rowan is a stranger.
    place: yard
places:
  yard:
    name: the yard
    description: It is muddy.
    exits:
      loft: A ladder leads up.
    conditions:
      wheel: The wheel stands still.
  loft:
    name: the loft
    description: It is dusty.
quests:
  wheel:
    title: the wheel
    stage: broken
    audience: [anna, "place:loft"]
    stages:
      - id: broken
        text: The wheel is broken.
      - id: mended
        text: The wheel turns again.
        audience: [anna]
""",
    "characters/anna.yaml": """\
name: Anna Reed
role: the miller
place: yard
sheet:
  identity: You are forty.
  personality: You are stern.
  relations:
    ben: Ben is your son.
memories:
  - text: I heard a crack.
    day: 2
    importance: 8
    people: [ben]
    place: yard
fallback: Not now.
""",
    "characters/ben.yaml": """\
name: Ben Reed
role: the miller's son
place: loft
sheet:
  identity: You are twelve.
  personality: You are shy.
  relations:
    anna: Anna is your mother.
memories:
  - text: I put a stone into the wheel.
    importance: 9
""",
    "lore/flood.yaml": """\
title: The flood
text: The river rose in spring.
""",
    "lore/stone.yaml": """\
title: The stone
text: A stone blocks the wheel.
audience: [ben]
importance: 10
""",
}


def write_world(folder: Path, files: dict[str, str]) -> Path:
    """A world folder made of these files."""
    for name, text in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def mill(tmp_path: Path) -> Path:
    return write_world(tmp_path / "mill", FILES)


@pytest.fixture
def state(mill: Path) -> WorldState:
    return WorldState.start(load_world(mill))
