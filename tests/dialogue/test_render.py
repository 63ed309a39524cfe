"""From entities to block texts: shared texts are the same for all, and nobody is told what they don't know."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from npc_engine.dialogue import HEADER, BlockText, changed, render_layout
from npc_engine.errors import UnknownNameError
from npc_engine.world import EntityId, WorldState, load_world

PLAYER = EntityId("player/player")


@pytest.fixture
def state() -> WorldState:
    return WorldState.start(load_world(Path(__file__).parents[2] / "worlds/ninestep"))


def render(state: WorldState, key: str) -> tuple[BlockText, ...]:
    return render_layout(state, EntityId(f"character/{key}"), PLAYER)


def test_order_stable_first_changing_last(state: WorldState) -> None:
    """World, lore, quests, the character, its memories, then the scene."""
    assert [(block.entity, block.section) for block in render(state, "wick")] == [
        ("world", "setting"),
        ("lore/board", "text"),
        ("lore/drought", "text"),
        ("lore/gauge", "text"),
        ("lore/ice", "text"),
        ("lore/mules", "text"),
        ("lore/stair", "text"),
        ("quest/ice", "stage"),
        ("quest/water", "stage"),
        ("character/wick", "sheet/identity"),
        ("character/wick", "sheet/personality"),
        ("character/wick", "sheet/speech_style"),
        ("character/wick", "sheet/background"),
        ("character/wick", "sheet/goals"),
        ("character/wick", "sheet/knowledge"),
        ("character/wick", "sheet/relations"),
        ("character/wick", "memories/0"),
        ("character/wick", "memories/1"),
        ("character/wick", "memories/2"),
        ("character/wick", "memories/3"),
        ("place/basin", "description"),
        ("place/basin", "people"),
        ("place/basin", "conditions"),
        ("time", "phrase"),
        ("player/player", "description"),
    ]


def test_texts(state: WorldState) -> None:
    """The words of some blocks, one of each sort."""
    texts = {block.section: block.text for block in render(state, "wick")}
    assert texts["sheet/identity"].startswith("You are Wick Tansy, the mule girl of the Fifth Basin. You are twelve")
    assert texts["memories/3"] == (
        "Your memory from day 12: I put my hand into the wet grass by the iron ring. It was cold like ice water.\n"
    )
    assert texts["people"] == (
        "People who are at the Fifth Basin now: Bastian Roe, Teo Lindqvist, Wick Tansy and Rowan.\n"
    )
    assert texts["conditions"] == (
        "At the Fifth Basin right now: Only the ice boat Patience lies here. "
        "The water stands at mark five. The signal lamp is red.\n"
    )
    assert texts["phrase"] == "It is day 12 now, and the time is afternoon.\n"


def test_shared_blocks_are_the_same_bytes_for_all(state: WorldState) -> None:
    """Two NPCs who both have a block of the world, a place or a player have the same one."""
    shared: dict[tuple[str, str], set[str]] = {}
    for npc_id in state.npcs():
        for block in render_layout(state, npc_id, PLAYER):
            if not block.entity.startswith("character/"):
                shared.setdefault((block.entity, block.section), set()).add(block.text)
    assert len(shared) > 20
    assert all(len(texts) == 1 for texts in shared.values())


@pytest.mark.parametrize(
    ("secret", "confidants"),
    [
        ("The night water", {"teo", "juno"}),
        ("false figures", {"teo", "juno"}),
        ("The sealed order", {"sabine", "odile"}),
        ("The old culvert", {"odile", "ilka", "juno", "teo"}),
        ("Duchess is white", {"bastian", "wick", "teo"}),
    ],
)
def test_secret_is_rendered_for_its_audience_alone(state: WorldState, secret: str, confidants: set[str]) -> None:
    """A search through everything that everybody is told, at every stage of the quest."""
    for stage in state.quest(EntityId("quest/water")).stages[:3]:
        state.apply([{"op": "replace", "path": "/quests/water/stage", "value": stage.id}])
        told = {
            npc_id.removeprefix("character/")
            for npc_id in state.npcs()
            if secret in "".join(block.text for block in render_layout(state, npc_id, PLAYER))
        }
        assert told == confidants


def test_what_one_is_told_does_not_depend_on_the_others_secrets(state: WorldState) -> None:
    """Planted words in all that Bastian does not know never come out in his prompt."""
    before = render(state, "bastian")
    for npc_id in state.npcs():
        key = npc_id.removeprefix("character/")
        if key != "bastian":
            state.apply([{"op": "add", "path": f"/characters/{key}/memories/-", "value": {"text": "xyzzy"}}])
            state.apply([{"op": "replace", "path": f"/characters/{key}/sheet/knowledge", "value": "xyzzy"}])
    state.apply([{"op": "replace", "path": "/lore/night_water/text", "value": "xyzzy"}])
    state.apply([{"op": "add", "path": "/places/workshop/conditions/x", "value": "xyzzy"}])
    state.apply([{"op": "replace", "path": "/quests/water/stages/2/text", "value": "xyzzy"}])
    state.apply([{"op": "replace", "path": "/quests/water/stage", "value": "lantern"}])
    after = render(state, "bastian")
    assert [block.section for block in changed(before, after)] == ["stage"]  # old news: Rowan watches the basin
    assert "xyzzy" not in "".join(block.text for block in after)


@pytest.mark.parametrize(
    ("patch", "expected"),
    [
        ("places/basin/conditions/lamp=The signal lamp is green.", [("place/basin", "conditions")]),
        ("places/workshop/conditions/forge=The forge roars.", []),
        ("characters/wick/sheet/goals=You want to sleep.", [("character/wick", "sheet/goals")]),
        ("characters/teo/sheet/goals=You want to sleep.", []),
        ("characters/teo/place=workshop", [("place/basin", "people")]),
        ("characters/wick/memories/-=I saw Rowan wave.", [("character/wick", "memories/4")]),
        ("quests/water/stage=watch", [("quest/water", "stage")]),
        ("time/minute=1000", []),
        ("time/minute=1300", [("time", "phrase")]),
    ],
)
def test_one_change_changes_one_block(state: WorldState, patch: str, expected: list[tuple[str, str]]) -> None:
    """Only the block whose words changed is new in Wick's layout."""
    before = render(state, "wick")
    state.apply([state.parse_assignment(patch)])
    assert [(block.entity, block.section) for block in changed(before, render(state, "wick"))] == expected


def test_rendering_depends_on_content_alone(state: WorldState) -> None:
    """A restored document with its names in another order renders the same blocks."""
    before = {npc_id: render_layout(state, npc_id, PLAYER) for npc_id in state.npcs()}

    def shuffled(value: object) -> object:
        if isinstance(value, dict):
            names = list(value)
            random.Random(7).shuffle(names)
            return {name: shuffled(value[name]) for name in names}
        return [shuffled(each) for each in value] if isinstance(value, list) else value

    document = shuffled(state.to_json())
    assert isinstance(document, dict)
    restored = WorldState.from_json(document)
    assert {npc_id: render_layout(restored, npc_id, PLAYER) for npc_id in restored.npcs()} == before


def test_sizes_of_the_first_world(state: WorldState) -> None:
    """Every block is a few sentences, every prompt of a useful length (in characters; about four make a token)."""
    for npc_id in state.npcs():
        blocks = render_layout(state, npc_id, PLAYER)
        assert 18 <= len(blocks) <= 30
        assert 3_600 <= sum(len(block.text) for block in blocks) <= 5_600
        assert all(40 <= len(block.text) <= 420 and block.text.endswith(".\n") for block in blocks)
        assert all(block.text.count("\n") == 1 for block in blocks)
    assert HEADER.endswith(".\n")


def test_empty_sections_have_no_block(state: WorldState) -> None:
    """Clearing a section, all conditions and all relations removes their blocks."""
    state.apply(
        [
            {"op": "replace", "path": "/characters/wick/sheet/goals", "value": ""},
            {"op": "replace", "path": "/characters/wick/sheet/relations", "value": {}},
            {"op": "replace", "path": "/places/basin/conditions", "value": {}},
        ]
    )
    sections = {block.section for block in render(state, "wick")}
    assert sections.isdisjoint({"sheet/goals", "sheet/relations", "conditions"})


def test_unknown_npc_or_player(state: WorldState) -> None:
    """Both are a user's mistakes, with the names that exist."""
    with pytest.raises(UnknownNameError, match="character/wick"):
        render(state, "wik")
    with pytest.raises(UnknownNameError, match="player/player"):
        render_layout(state, EntityId("character/wick"), EntityId("player/plyer"))
