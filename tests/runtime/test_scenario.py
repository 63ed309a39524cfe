"""Reading scenarios."""

from __future__ import annotations

from pathlib import Path

import pytest

from npc_engine.runtime.scenario import AdvanceStep, NoteStep, SayStep, ScenarioError, SetStep, load_scenario, rehearse
from npc_engine.world import WorldState, load_world

ROOT = Path(__file__).resolve().parents[2]
SCENARIO = """\
title: The lamp
sampling: {max_tokens: 12, temperature: 1}
steps:
  - note: Before.
  - say:
      npc: Wick
      text: Is the lamp red?
      expect: [RED, "the lamp"]
  - set: places/basin/conditions/lamp=The signal lamp is green.
  - advance: 10
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "scenario.yaml"
    path.write_text(text)
    return path


def ninestep() -> WorldState:
    return WorldState.start(load_world(ROOT / "worlds" / "ninestep"))


def test_steps_know_their_lines(tmp_path: Path) -> None:
    """Every kind of step, in order; patterns ignore case."""
    scenario = load_scenario(write(tmp_path, SCENARIO))
    note, say, change, advance = scenario.steps
    assert (scenario.title, scenario.player) == ("The lamp", "player")
    assert (scenario.sampling.max_tokens, scenario.sampling.temperature) == (12, 1.0)
    assert note == NoteStep(4, "Before.")
    assert isinstance(say, SayStep)
    assert say[:3] == (5, "Wick", "Is the lamp red?")
    assert all(pattern.search("The lamp is red.") for pattern in say.patterns)
    assert change == SetStep(9, "places/basin/conditions/lamp=The signal lamp is green.")
    assert advance == AdvanceStep(10, 10)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ":1: file: the file is empty"),
        ("steps: [{note: x}]", ":1: title: is missing"),
        ("title: x\nsteps: []", ":2: steps: is empty"),
        ("title: x\nsteps:\n  - says: y", ':3: steps[0].says: unknown field; did you mean "say"?'),
        ("title: x\nsteps:\n  - note: y\n    advance: 3", ":3: steps[0]: a step is one of"),
        ("title: x\nsteps:\n  - {}", ":3: steps[0]: a step is one of"),
        ("title: x\nsteps:\n  - note:", ":3: steps[0]"),
        ("title: x\nsteps:\n  - advance: -1", ":3: steps[0].advance: must be at least 0"),
        ("title: x\nsteps:\n  - say:\n      npc: wick", ":3: steps[0].say.text: is missing"),
        (
            "title: x\nsteps:\n  - say:\n      npc: wick\n      text: y\n      expect:\n        - ok\n        - '('",
            ":8: steps[0].say.expect[1]: '(' is no regular expression",
        ),
        ("title: x\nsampling: {heat: 1}\nsteps: [{note: y}]", ":2: sampling.heat: unknown field"),
        ("title: x\nsampling: {top_p: 2}\nsteps: [{note: y}]", ":2: sampling.top_p: must be at most 1"),
        ("title: x\ntitle: y\nsteps: [{note: y}]", ":2: title: stands here twice"),
    ],
)
def test_mistakes_name_line_and_field(text: str, expected: str, tmp_path: Path) -> None:
    """One line, like those of worlds."""
    path = write(tmp_path, text)
    with pytest.raises(ScenarioError) as caught:
        load_scenario(path)
    message = str(caught.value)
    assert message.startswith(f"{path}{expected}"), message
    assert "\n" not in message


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=r"missing\.yaml:1: "):
        load_scenario(tmp_path / "missing.yaml")


def test_a_rehearsal_plays_on_a_copy(tmp_path: Path) -> None:
    """Later steps see the changes of earlier ones; the state stays as it was."""
    text = "title: x\nsteps:\n  - set: quests/water/stage=watch\n  - set: quests/water/stage=nowhere"
    state = ninestep()
    digest = state.digest()
    rehearse(load_scenario(write(tmp_path, SCENARIO)), state)
    with pytest.raises(ScenarioError, match=r"scenario\.yaml:4: "):
        rehearse(load_scenario(write(tmp_path, text)), state)
    assert state.digest() == digest


@pytest.mark.parametrize("path", sorted(ROOT.glob("demos/*/scenario.yaml")), ids=lambda path: path.parent.name)
def test_the_demos_can_be_played(path: Path) -> None:
    """Every demo's scenario loads, and fits the world that its README names."""
    rehearse(load_scenario(path), ninestep())
