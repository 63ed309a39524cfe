"""Counterfactual scenes: consistent, grammatical, and as true to themselves as the originals."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from npc_engine.tuning.augment import augment, augment_with_classes, with_distractors
from npc_engine.tuning.augment_names import find_names, fresh_names
from npc_engine.tuning.augment_numbers import NumberMap, draw_numbers, is_arithmetic, numbers
from npc_engine.tuning.augment_text import Substitution, runs
from npc_engine.tuning.scenes import Kind, Scene, SceneBlock, SceneCharacter, SceneTurn, check_scene, load_scenes

TRAINING = Path(__file__).parents[2] / "data" / "scenes" / "training"


def scene_of(world: list[str], turns: list[SceneTurn], **parts: object) -> Scene:
    """A scene about Kestor whose world blocks are w1, w2 and so on."""
    blocks = tuple(SceneBlock(id=f"w{number}", text=text) for number, text in enumerate(world, start=1))
    character = SceneCharacter(name="Kestor", role="smith", sheet=(SceneBlock(id="c1", text="You are Kestor."),))
    kept = {"location": (), "memories": (), **parts}
    return Scene.model_validate(
        {"id": "s", "genre": "g", "world": blocks, "character": character, "turns": tuple(turns), **kept}
    )


def turn_of(player: str, reply: str, *accept: str, needs: tuple[str, ...] = ("w1",), **parts: object) -> SceneTurn:
    values = {"kind": Kind.WORLD, "player": player, "reply": reply, "accept": accept, "needs": needs, **parts}
    return SceneTurn.model_validate(values)


SMITHY = scene_of(
    [
        "The smith Ottokar keeps seven otters at the Vandel bridge.",
        "Old Vandel sells a red cap on Tuesday.",
        "Rain falls in the hills beyond.",
        "The mill has no roof at all.",
        "The quarry stands empty.",
    ],
    [
        turn_of("How many otters has ottokar?", "Ottokar's got seven otters.", r"\b7\b|\bseven\b"),
        turn_of("When does Vandel sell?", "On Tuesday.", "tuesday", needs=("w2",)),
    ],
)


def test_everything_follows_a_substitution() -> None:
    """Names in possessives and in lower case, digits beside words, plurals: all change together, in patterns too."""
    for seed in range(40):
        new, chosen, applied = augment_with_classes(SMITHY, random.Random(seed))
        assert applied == chosen >= {"names"}
        texts = {block.id: block.text for block in new.world}
        found = re.fullmatch(r"The smith (\w+) keeps (\w+) (\w+) at the (\w+) bridge\.", texts["w1"])
        assert found is not None
        name, count, animals, place = found.groups()
        assert new.turns[0].reply == f"{name}'s got {count} {animals}."
        assert new.turns[0].player == f"How many {animals} has {name.lower()}?"
        assert new.turns[0].accept[0].endswith(rf"\b{count}\b")
        assert new.turns[0].passes(numbers(count).__repr__().strip("[]"))
        assert texts["w2"].startswith(f"Old {place} sells a")
        assert "Ottokar" not in new.model_dump_json()


def test_the_same_seed_gives_the_same_scene_and_leaves_the_original() -> None:
    """The result depends on the generator alone, and the original is not changed."""
    before = SMITHY.model_dump_json()
    assert augment(SMITHY, random.Random(3)) == augment(SMITHY, random.Random(3))
    assert SMITHY.model_dump_json() == before


def test_every_kind_of_training_scene_stays_valid() -> None:
    """No problem that the original had not; and the result can be read back."""
    for path in sorted(TRAINING.glob("[awyz].jsonl")):
        for scene in load_scenes(path):
            new = augment(scene, random.Random(7))
            assert len(check_scene(new)) <= len(check_scene(scene)), new.id
            assert Scene.model_validate_json(new.model_dump_json()) == new


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("An owl and a crow.", "A crow and an owl."),
        ("AN OWL! Owls.", "A CROW! Crows."),
        ("He owes 7, 47 or 407; in 1847 seventy-seven.", "He owes 3, 43 or 403; in 1847 seventy-three."),
        ("At 7:30 the 7B left with 7.5 tons.", "At 7:30 the 7B left with 7.5 tons."),
        ("Give me an 8 and a 3.", "Give me a 4 and a 7."),
    ],
)
def test_texts(text: str, expected: str) -> None:
    """Case and articles are kept right, years, times and codes are left alone."""
    number = NumberMap({3: 7, 7: 3, 4: 4, 8: 4})
    words = {"owl": "crow", "crow": "owl", "owls": "crows", **number.words}
    assert Substitution(words, number).text(text) == expected


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (r"\b7\b|\bseven\b", r"\b3\b|\bthree\b"),
        (r"forty[- ]?seven", r"forty[- ]?three"),
        (r"(?=.*(?:owls?))(?=.*Seven)", r"(?=.*(?:crows?))(?=.*Three)"),
        (r"seven(th)?|\w{0,7}|\d7", r"seven(th)?|\w{0,7}|\d7"),
        (r"(?<!\d)7(?!\d)", r"(?<!\d)3(?!\d)"),
        (r"an owl", r"a crow"),
    ],
)
def test_patterns(pattern: str, expected: str) -> None:
    """Whole words are replaced, escapes, counts and parts of words are not."""
    number = NumberMap({3: 7, 7: 3})
    made = Substitution({"owl": "crow", "crow": "owl", **number.words}, number)
    assert made.pattern(pattern) == expected


def test_runs_know_parts_of_words() -> None:
    """What a group or a class may continue is a part; optional plurals are not."""
    found = {run.text: run.is_part for run in runs(r"\bill\b|horses?|colou?r|twent(y|ies)|gr[ae]y|(the )?Onfim")}
    wanted = {"ill": False, "horses": False, "colou": True, "twent": True, "gr": True, "Onfim": False}
    assert {word: found[word] for word in wanted} == wanted


def test_numbers_in_words_and_digits() -> None:
    """Compounds are one number, neighbours are not."""
    assert numbers("Six hundred and twelve head, forty-six bells, 80 dogs and three cats") == [612, 46, 80, 3]
    assert numbers("the seventh of nine, two thousand and five") == [7, 9, 2005]
    assert numbers("one or nobody") == []


def test_arithmetic_switches_numbers_off() -> None:
    """A reply with a number that stands in no block, or a sum within a block, forbids another number."""
    assert is_arithmetic(["I had nine and sold four."], ["That leaves five."])
    assert is_arithmetic(["Nine cows, four sold, five left."], ["Five."])
    assert not is_arithmetic(["I had nine and sold four."], ["Nine, I had."])
    scene = scene_of(["I had nine cows and sold four."], [turn_of("How many?", "Five.", "five|nine")])
    assert all("numbers" not in augment_with_classes(scene, random.Random(seed)).chosen for seed in range(20))


def test_numbers_that_stand_together_keep_their_order() -> None:
    """Eight of a dozen never becomes twelve of eight; days that follow each other stay."""
    texts = [
        "She is the fourth of nine.",
        "It is day 8 now.",
        "Your memory from day 7.",
        "Eggs cost sixty, hens eighty.",
    ]
    for seed in range(50):
        drawn = draw_numbers(texts, random.Random(seed))
        assert drawn is not None
        assert drawn(4) < drawn(9)
        assert drawn(60) < drawn(80)
        assert (drawn(7), drawn(8)) == (7, 8)


def test_names_are_found_and_kept_apart() -> None:
    """Titles, words of classes and what occurs in lower case are no names; short forms keep belonging to long ones."""
    told = ["Ask Captain Zhirovit or Zhiro about the Ferrow, says Ulmo.", "The ferrow is a boat.", "Then He came."]
    names = find_names(told, ["hello ulmo"], "", {"tuesday"})
    assert names == {"zhirovit", "zhiro", "ulmo"}
    fresh = fresh_names(names, {"boat"}, random.Random(1))
    assert fresh["zhirovit"] == fresh["zhiro"] + "vit"
    assert len(set(fresh.values())) == 3


def test_needed_blocks_stay() -> None:
    """Blocks that a turn needs are never dropped, and of the others a third at most."""
    counts = set()
    for seed in range(30):
        ids = {block.id for block in augment(SMITHY, random.Random(seed)).world}
        assert ids >= {"w1", "w2"}
        counts.add(len(ids))
    assert counts == {4, 5}


def test_distractors_answer_nothing() -> None:
    """Blocks are added up to the limit, under ids of their own, and only where they match no answer and no name."""
    other = SMITHY.model_copy(
        update={
            "id": "o",
            "world": tuple(
                SceneBlock(id="w1", text=text)
                for text in ("Seven towers.", "Kestor is tall.", "Vandel sings.", "The sea is calm.", "You are Bob.")
            ),
        }
    )
    for seed in range(20):
        new = with_distractors(SMITHY, [other, SMITHY], random.Random(seed), 3)
        added = {block.text for block in new.blocks} - {block.text for block in SMITHY.blocks}
        assert added == {"The sea is calm."}
        assert check_scene(new) == []
    assert with_distractors(SMITHY, [], random.Random(0), 3) == SMITHY
