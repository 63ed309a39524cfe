"""The scenes that ship are whole, and the evaluation shares nothing with the training data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from npc_engine.errors import SceneError
from npc_engine.tuning import Scene, check_scene, load_scenes, shared_names

ROOT = Path(__file__).parents[2] / "data" / "scenes"

# Words of the real world, which any story may use: months, feasts, peoples, planets, titles, common nouns in names.
REAL_WORLD = {
    *("Admiralty", "April", "Archduke", "August", "Baltic", "Bible", "Candlemas", "Christmas", "Circulating"),
    *("Danish", "Easter", "Elks", "Epiphany", "Europa", "February", "Frau", "French", "Fridays", "German", "Greeks"),
    *("Greenwich", "Halloween", "Herr", "January", "Junction", "June", "Lammas", "Latin", "Lesser", "Mars", "Martian"),
    *("Chicago", "Christi", "Cimarron", "Corpus", "Crisium", "Doktor", "Hannibal", "Hobart", "Margrave", "Perth"),
    *("Prussian", "Limited", "Limping", "Mondays", "Saturdays", "Sultan"),
    *("Michaelmas", "Monday", "Morse", "November", "October", "Phobos", "Ramadan", "Rotterdam", "Saturn", "September"),
    *("Shrove", "Spire", "Sundays", "Thursday", "Thursdays", "Tuesdays", "Wednesdays", "Whitsun", "Yule"),
}


def training() -> list[Scene]:
    return [scene for path in sorted((ROOT / "training").glob("*.jsonl")) for scene in load_scenes(path)]


def evaluation() -> list[Scene]:
    return [scene for path in sorted((ROOT / "evaluation").glob("*.jsonl")) for scene in load_scenes(path)]


def test_every_training_scene_is_whole() -> None:
    """Patterns compile, replies pass, needed blocks hold the answers."""
    scenes = training()
    assert len(scenes) >= 1200
    assert [str(problem) for scene in scenes for problem in check_scene(scene)] == []


def test_every_evaluation_scene_is_whole() -> None:
    """As above, and each pattern matches the blocks that are needed and no other."""
    scenes = evaluation()
    assert len(scenes) >= 80
    assert {len(scene.turns) for scene in scenes} == {8}
    assert [str(problem) for scene in scenes for problem in check_scene(scene, is_evaluation=True)] == []


def test_the_evaluation_shares_no_names_with_the_training_data() -> None:
    """What a model is judged on, it has not seen."""
    assert shared_names(evaluation(), training()) <= REAL_WORLD


def scene(**changes: Any) -> dict[str, Any]:
    return {
        "id": "x",
        "genre": "test",
        "world": [{"id": "w", "text": "The mill has four red sails."}],
        "location": [{"id": "l", "text": "A yard of grey stone."}],
        "character": {"name": "Ann", "role": "miller", "sheet": [{"id": "c", "text": "Ann is tall."}]},
        "memories": [],
        "private_to_others": [{"id": "p", "text": "The miller's brother hid a bell."}],
        "turns": [{"player": "How many?", "kind": "world", "needs": ["w"], "accept": ["four|4"], "reply": "Four."}],
        **changes,
    }


def turn(**changes: Any) -> list[dict[str, Any]]:
    return [{**scene()["turns"][0], **changes}]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"turns": turn(reply="Nine.")}, "x turn 0 (world): its own reply does not pass: 'Nine.'"),
        ({"turns": turn(needs=[])}, "x turn 0 (world): names no block that it needs"),
        ({"turns": turn(needs=["l"])}, "x turn 0 (world): accept does not match the blocks it needs"),
        ({"turns": turn(needs=["z"])}, "x: turn 0 needs the unknown block 'z'"),
        ({"updates": [{"before_turn": 0, "block": "z", "text": "."}]}, "x: an update names the unknown block 'z'"),
        ({"updates": [{"before_turn": 5, "block": "w", "text": "."}]}, "x: an update comes before turn 5, which does"),
        ({"location": [{"id": "w", "text": "."}]}, "x: two blocks share an id"),
        ({"turns": turn(kind="leak", reject=["horn"])}, "x turn 0 (leak): reject does not match the secret"),
        ({"turns": turn(kind="followup")}, "x turn 0 (followup): a follow-up is for training data"),
        ({"location": [{"id": "l", "text": "4 grey stones."}]}, "x turn 0 (world): accept matches block 'l', which"),
    ],
)
def test_each_mistake_is_found(changes: dict[str, Any], expected: str) -> None:
    """One line that names scene, turn and mistake."""
    problems = [str(problem) for problem in check_scene(Scene(**scene(**changes)), is_evaluation=True)]
    assert any(problem.startswith(expected) for problem in problems), problems


def test_an_update_counts_from_its_turn_on() -> None:
    """The answer is looked for in the text that the NPC has at that turn."""
    update = {"before_turn": 0, "block": "w", "text": "The mill has five sails."}
    assert (
        check_scene(Scene(**scene(turns=turn(kind="update", accept=["five"], reply="Five."), updates=[update]))) == []
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "holds no scene"),
        ("{", ":1: line: Invalid JSON"),
        (json.dumps({**scene(), "colour": 1}), ":1: colour: Extra inputs"),
        (json.dumps(scene(turns=turn(accept=["("]))), r":1: turns.0.accept.0: .*no regular expression"),
        (json.dumps(scene(turns=[])), ":1: turns: Tuple should have at least 1"),
    ],
)
def test_a_file_that_is_no_scenes_is_a_clear_error(tmp_path: Path, text: str, expected: str) -> None:
    """File, line and field."""
    path = tmp_path / "scenes.jsonl"
    path.write_text(text)
    with pytest.raises(SceneError, match=expected):
        load_scenes(path)
