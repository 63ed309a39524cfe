"""Tests for the scenes made by rule."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from npc_engine.tuning import Scene, check_scene
from npc_engine.tuning.generator import generate_scenes
from npc_engine.tuning.generator.facts import Attribute, load_domains, parse_domains
from npc_engine.tuning.generator.numbers import in_words, number_pattern
from npc_engine.tuning.generator.phrasing import REFUSAL
from npc_engine.tuning.scenes import Kind

NUM_SCENES = 2_000


@pytest.fixture(scope="module")
def scenes() -> tuple[Scene, ...]:
    return tuple(generate_scenes(NUM_SCENES, seed=7))


def test_every_scene_is_valid(scenes: tuple[Scene, ...]) -> None:
    """The checker of hand-written scenes finds nothing, and sizes are as promised."""
    assert [problem for scene in scenes for problem in check_scene(scene)] == []
    assert all(4 <= len(scene.blocks) <= 31 and 6 <= len(scene.turns) <= 10 for scene in scenes)
    assert len({scene.id for scene in scenes}) == NUM_SCENES


def test_a_seed_gives_the_same_scenes_and_a_longer_run_starts_alike() -> None:
    """Scene i depends on the seed and i alone."""
    short, long = list(generate_scenes(20, seed=3)), list(generate_scenes(40, seed=3))
    assert short == long[:20]
    assert short != list(generate_scenes(20, seed=4))


def test_no_template_is_left_unfilled(scenes: tuple[Scene, ...]) -> None:
    """No slot, mark or doubled blank reaches a text; a slot is one word in braces."""
    texts = [text for scene in scenes for text in scene.all_texts()]
    assert [text for text in texts if re.search(r"\{\w+\}|\*|  ", text)] == []


def test_scenes_are_diverse(scenes: tuple[Scene, ...]) -> None:
    """Blocks, questions and replies hardly repeat, and all domains occur."""
    blocks = {block.text for scene in scenes for block in scene.blocks}
    turns = [turn for scene in scenes for turn in scene.turns]
    assert len(blocks) > 25_000
    assert len({turn.player for turn in turns}) > 0.8 * len(turns)
    assert len({turn.reply for turn in turns}) > 0.8 * len(turns)
    assert len({scene.genre.partition(":")[0] for scene in scenes}) == len(load_domains()) - 1 >= 30


def test_every_kind_occurs_and_refusals_stay_rare(scenes: tuple[Scene, ...]) -> None:
    """A model that sees many refusals refuses what it knows."""
    kinds = Counter(turn.kind for scene in scenes for turn in scene.turns)
    total = kinds.total()
    assert set(kinds) == set(Kind)
    assert 0.03 < kinds[Kind.UNKNOWN] / total < 0.08
    assert (kinds[Kind.UNKNOWN] + kinds[Kind.LEAK]) / total < 0.1
    assert kinds[Kind.MULTI] / total > 0.08
    assert kinds[Kind.UPDATE] / total > 0.08


def test_updates_come_after_the_old_value_was_asked_about_and_without_it(scenes: tuple[Scene, ...]) -> None:
    """Both ways are common: an NPC has to drop what it said, too."""
    after_talk = Counter(
        any(update.block in turn.needs for turn in scene.turns[: update.before_turn])
        for scene in scenes
        for update in scene.updates
    )
    assert min(after_talk[True], after_talk[False]) > 0.3 * after_talk.total()


def test_an_update_turn_is_answered_by_the_updated_block(scenes: tuple[Scene, ...]) -> None:
    """The block that the turn needs tells the new value from that turn on."""
    for scene in scenes:
        for index, turn in enumerate(scene.turns):
            if turn.kind is Kind.UPDATE:
                text = scene.texts_at(index)[turn.needs[0]]
                assert any(re.search(pattern, text, re.IGNORECASE) for pattern in turn.accept), scene.id


def test_refusals_differ_and_answers_refuse_nothing(scenes: tuple[Scene, ...]) -> None:
    """Answerable turns are hardly ever answered in words that own up to not knowing."""
    refusals = [turn.reply for scene in scenes for turn in scene.turns if turn.kind is Kind.UNKNOWN]
    answers = [turn.reply for scene in scenes for turn in scene.turns if turn.kind.is_answerable]
    assert len(set(refusals)) > 0.9 * len(refusals)
    assert sum(re.search(REFUSAL, reply, re.IGNORECASE) is not None for reply in answers) < 0.05 * len(answers)


def _attributes() -> list[tuple[str, Attribute]]:
    facts = [(domain.name, fact) for domain in load_domains() for fact in domain.facts]
    return [(f"{name}/{fact.name}/{each.slot}", each) for name, fact in facts for each in fact.attributes]


@pytest.mark.parametrize(("name", "attribute"), _attributes())
def test_every_attribute_is_phrased_in_many_ways(name: str, attribute: Attribute) -> None:
    """Its clause and every reply give the value; question and topic never do."""
    slot = f"{{{attribute.slot}}}"
    assert len(attribute.questions) >= 4 <= len(attribute.replies)
    assert slot in attribute.say
    assert all(slot in reply for reply in attribute.replies)
    assert not any(slot in question for question in (*attribute.questions, attribute.topic, attribute.description))


def test_a_mistake_in_a_domain_names_its_line() -> None:
    """The files are written by hand."""
    with pytest.raises(ValueError, match="line 3: 'zz what'"):
        list(parse_domains("= tavern\n@ bed key=inn\nzz what\n"))


@pytest.mark.parametrize(
    ("number", "text", "matches"),
    [("22", "twenty-two silver", True), ("2", "twenty-two silver", False), ("two", "at 2, then", True)],
)
def test_a_number_is_recognized_in_words_and_digits(number: str, text: str, matches: bool) -> None:
    """Yet not as a part of a longer one."""
    assert (re.search(number_pattern(number), text) is not None) is matches
    assert in_words(40) == "forty"
