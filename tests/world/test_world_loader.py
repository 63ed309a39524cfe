"""Reading worlds: the good ones load, and every mistake is reported where it was made."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from npc_engine.errors import WorldError
from npc_engine.world import check_world, list_worlds, load_world

WORLDS = Path(__file__).parents[2] / "worlds"

WORLD, ANNA, BEN, FLOOD = "world.yaml", "characters/anna.yaml", "characters/ben.yaml", "lore/flood.yaml"

# file, what the author had, what the author wrote instead, line and field of the report, part of the message
MISTAKES = [
    (WORLD, "title: The Mill", "titel: The Mill", 3, "titel", 'unknown field; did you mean "title"?'),
    (WORLD, "title: The Mill\n", "", 1, "title", "is missing; add it"),
    (WORLD, "format: 1", "format: 2", 1, "format", "this version of the engine reads format 1"),
    (WORLD, "id: mill", "id: the mill", 2, "id", "'the mill' is no id"),
    (WORLD, 'time: "19:40"', "time: 19:40", 7, "start.time", 'YAML reads 19:40 as the number 1180; write "19:40"'),
    (WORLD, 'time: "19:40"', 'time: "25:40"', 7, "start.time", "'25:40' is no time of day"),
    (WORLD, "  day: 3", "  day: 0", 6, "start.day", "must be at least 1, not 0"),
    (WORLD, "    place: yard", "    place: yrad", 11, "start.player.place", 'no place "yrad"; did you mean "yard"?'),
    (WORLD, "name: the loft", "name: no", 21, "places.loft.name", 'YAML reads no as false; write "no" in quotes'),
    (WORLD, "      loft: A ladder", "      attic: A ladder", 17, "places.yard.exits.attic", "there are: loft, yard"),
    (WORLD, "  loft:\n    name", "  yard:\n    name", 20, "places.yard", "stands here twice, first in line 13"),
    (WORLD, "    stage: broken", "    stage: burnt", 26, "quests.wheel.stage", "the stages are: broken, mended"),
    (WORLD, "- id: mended", "- id: broken", 28, "quests.wheel.stages", 'two stages have the id "broken"'),
    (WORLD, "audience: [anna]", "audience: [ana]", 33, "quests.wheel.stages[1].audience[0]", 'did you mean "anna"?'),
    (WORLD, '"place:loft"', '"place:left"', 27, "quests.wheel.audience[1]", 'did you mean "loft"?'),
    (WORLD, "  yard:\n    name", "  no:\n    name", 13, "places.no", 'write "no" in quotes'),
    (WORLD, "It is muddy.", "Mud: everywhere.", 15, "file", "put a text that contains ': ' in quotes"),
    (ANNA, "fallback: Not now.", 'fallback: "Not now.', 15, "file", "close the quotes"),
    (WORLD, "  loft:\n    name", "\tloft:\n    name", 20, "file", "indent with spaces"),
    (ANNA, "  identity:", "  identty:", 5, "sheet.identty", 'did you mean "identity"?'),
    (ANNA, "personality: You are stern.", "personality:", 6, "sheet.personality", "is empty; write a text"),
    (ANNA, "    ben: Ben", "    bem: Ben", 8, "sheet.relations.bem", 'no character "bem"; did you mean "ben"?'),
    (ANNA, "importance: 8", "importance: 11", 12, "memories[0].importance", "must be at most 10, not 11"),
    (ANNA, "importance: 8", 'importance: "8"', 12, "memories[0].importance", "must be a whole number, not a text"),
    (ANNA, "people: [ben]", "people: ben", 13, "memories[0].people", "must be a list"),
    (ANNA, "    place: yard", "    place: barn", 14, "memories[0].place", 'no place "barn"'),
    (ANNA, "place: yard\nsheet", "place: yars\nsheet", 3, "place", 'did you mean "yard"?'),
    (ANNA, "name: Anna Reed", "name: 2024-05-01", 1, "name", 'as a date; write "2024-05-01" in quotes'),
    (BEN, "role: the miller's son", 'role: ""', 2, "role", "is empty"),
    (BEN, "sheet:", "sheet: Ben\nnotes:", 4, "sheet", "must be a mapping"),
    (BEN, "name: Ben Reed", "name: &n Ben\nrole: *n", 2, "role", "aliases (*name) are not supported"),
    (BEN, "name: Ben Reed", "name: !secret Ben", 1, "name", "tag !secret is not supported"),
    (FLOOD, "text: The river rose in spring.", "text: [The, river]", 2, "text", "must be text, not a list"),
    (FLOOD, "spring.\n", "spring.\naudience: all\n", 3, "audience", 'must be "everyone" or a list'),
    (FLOOD, "spring.", "spring.\x07", 2, "file", "control character"),
    (FLOOD, "title: The flood\ntext: The river rose in spring.\n", "", 1, "file", "the file is empty"),
]


@pytest.mark.parametrize(("file", "old", "new", "line", "field", "message"), MISTAKES)
def test_each_mistake_is_reported_at_its_file_line_and_field(
    mill: Path, file: str, old: str, new: str, line: int, field: str, message: str
) -> None:
    """One edit makes a good world bad; the first problem names the place of that edit and the remedy, in one line."""
    path = mill / file
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")

    problem = next(each for each in check_world(mill) if message in each.message)

    assert (problem.file, problem.line, problem.field) == (path, line, field)
    with pytest.raises(WorldError, match=re.escape(str(path))) as raised:
        load_world(mill)
    assert "\n" not in str(raised.value)


def test_one_mistake_gives_one_problem(mill: Path) -> None:
    """What stands in a broken file still exists, so references to it are not reported as well."""
    (mill / ANNA).write_text("name: Anna\n", encoding="utf-8")
    problems = check_world(mill)
    assert [(problem.file.name, problem.field) for problem in problems] == [
        ("anna.yaml", "place"),
        ("anna.yaml", "role"),
        ("anna.yaml", "sheet"),
    ]


def test_error_counts_the_other_problems(mill: Path) -> None:
    """load_world names the first problem and says how many more there are."""
    (mill / ANNA).write_text("name: Anna\n", encoding="utf-8")
    with pytest.raises(WorldError) as raised:
        load_world(mill)
    assert str(raised.value) == (
        f"{mill / ANNA}:1: place: is missing; add it (and 2 more; see npc-engine world check {mill})"
    )


def test_text_that_is_not_utf8_is_reported_at_its_line(mill: Path) -> None:
    """A Latin-1 file is refused with the line of the first wrong byte."""
    (mill / BEN).write_bytes(b"name: Ben\nrole: caf\xe9 owner\n")
    assert str(check_world(mill)[0]) == f"{mill / BEN}:2: file: byte 0xe9 is not UTF-8; save it as UTF-8"


def test_byte_order_mark_is_read(mill: Path) -> None:
    """Editors on Windows may put a mark before the text."""
    (mill / BEN).write_bytes(b"\xef\xbb\xbf" + (mill / BEN).read_bytes())
    assert load_world(mill).characters["ben"].name == "Ben Reed"


@pytest.mark.parametrize("text", ["[" * 300_000, "{a: " * 20_000, "- " * 50_000, "a: &x [*x]\n", "--- 1\n--- 2\n"])
def test_strange_yaml_is_a_problem_and_not_a_crash(mill: Path, text: str) -> None:
    """Deep nesting, recursion and several documents end in a report on that file."""
    (mill / BEN).write_text(text, encoding="utf-8")
    assert {problem.file for problem in check_world(mill)} == {mill / BEN}


def test_folders_and_files_that_are_not_there(mill: Path, tmp_path: Path) -> None:
    """A wrong path lists the worlds beside it; missing parts of a world are named."""
    (tmp_path / "empty").mkdir()
    assert (
        str(check_world(tmp_path / "mil")[0]) == f"{tmp_path / 'mil'}:1: world: no such folder; worlds beside it: mill"
    )
    assert check_world(tmp_path / "empty")[0].message == "no such file; a world folder needs a world.yaml"
    assert check_world(mill / WORLD)[0].message == f"is a file; name the folder, {mill}"
    for file in (mill / "characters").iterdir():
        file.unlink()
    assert "no character; write at least one file" in next(str(each) for each in check_world(mill))


def test_file_names_are_checked(mill: Path) -> None:
    """A file that would not be read, or whose name is no id, is reported instead of ignored."""
    (mill / FLOOD).rename(mill / "lore/flood.yml")
    (mill / "lore/stone.yaml").rename(mill / "lore/the stone.yaml")
    assert [(problem.file.name, problem.message.split(";")[0]) for problem in check_world(mill)] == [
        ("flood.yml", "rename it to flood.yaml"),
        ("the stone.yaml", '"the stone" is no id'),
    ]


def test_good_world_loads(mill: Path) -> None:
    """The world in the files is the world in memory; who has no home belongs where they start."""
    world = load_world(mill)
    assert check_world(mill) == []
    assert list(world.characters) == ["anna", "ben"]
    assert world.characters["ben"].home == "loft"
    assert world.quests["wheel"].audience == ("anna", "place:loft")
    assert world.lore["flood"].audience == "everyone"


@pytest.mark.parametrize("name", list_worlds(WORLDS))
def test_our_worlds_load(name: str) -> None:
    """Every world of this repository is free of problems, named like its folder, and has a README."""
    assert check_world(WORLDS / name) == []
    assert load_world(WORLDS / name).info.id == name
    assert (WORLDS / name / "README.md").is_file()


def test_ninestep_has_what_a_first_world_needs() -> None:
    """Seven people who all know each other, three places, lore, a quest with stages, memories and last words."""
    world = load_world(WORLDS / "ninestep")
    assert (len(world.characters), len(world.places), len(world.lore)) == (7, 3, 9)
    assert len(world.quests["water"].stages) == 5
    for key, character in world.characters.items():
        assert set(character.sheet.relations) == set(world.characters) - {key}
        assert 3 <= len(character.memories) <= 6
        assert character.fallback
