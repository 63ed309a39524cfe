"""The deterministic core: the same inputs at the same ticks give the same world, talk and prompts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from npc_engine.config import EngineConfig, SamplingParams
from npc_engine.dialogue.conversation import ConversationId
from npc_engine.inference import Model
from npc_engine.runtime.saves import SaveStore, Snapshot
from npc_engine.runtime.session import Session, SessionOutputs, create_prompter
from npc_engine.runtime.simulation import (
    Input,
    Outputs,
    PassTime,
    PatchWorld,
    ReplyEnded,
    Say,
    Simulation,
)
from npc_engine.world import EntityId, WorldState

PLAYER = EntityId("player/player")
NPCS = (EntityId("character/anna"), EntityId("character/ben"))
CONFIG = EngineConfig(max_utterance_tokens=64, sampling=SamplingParams(max_tokens=8))
MANY = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)

wheels = st.sampled_from(["still", "turning", "on fire"])
inputs_drawn = st.lists(
    st.one_of(
        st.tuples(st.just("say"), st.sampled_from(NPCS), st.sampled_from(["Hello.", "And then?", "Zażółć"])),
        st.tuples(st.just("end"), st.integers(0, 3), st.integers(0, 2)),
        st.tuples(st.just("patch"), wheels, st.booleans()),
        st.tuples(st.just("time"), st.integers(0, 500), st.none()),
    ),
    max_size=14,
)
partitions = st.lists(st.booleans(), min_size=14, max_size=14)


def patch(request_id: int, wheel: str, *, valid: bool = True) -> PatchWorld:
    place = "yard" if valid else "nowhere"
    return PatchWorld(request_id, ({"op": "add", "path": f"/places/{place}/conditions/wheel", "value": wheel},))


def play(drawn: list[tuple[Any, ...]]) -> list[Input]:
    """Inputs as an engine would give them: a reply ends only for an utterance that is being answered."""
    inputs: list[Input] = []
    waiting: dict[EntityId, list[int]] = {npc: [] for npc in NPCS}
    for request_id, (kind, first, second) in enumerate(drawn, start=1):
        match kind:
            case "say":
                inputs.append(Say(request_id, PLAYER, first, second))
                waiting[first].append(request_id)
            case "patch":
                inputs.append(patch(request_id, first, valid=second))
            case "time":
                inputs.append(PassTime(request_id, first))
            case _ if due := [(npc, ids) for npc, ids in waiting.items() if ids]:
                npc, ids = due[first % len(due)]
                speech = None if second == 0 else "So it is."
                tokens = (30, 31, 32) if second else ()
                inputs.append(ReplyEnded(ids.pop(0), PLAYER, npc, speech, tokens, is_stopped=second == 1))
    return inputs


def ticks(inputs: list[Input], cuts: list[bool]) -> list[list[Input]]:
    """The same inputs over some partition into ticks, but a reply never ends in the tick it became due in."""
    groups: list[list[Input]] = [[]]
    for each, cut in zip(inputs, cuts, strict=False):
        if cut or isinstance(each, ReplyEnded):
            groups.append([])
        groups[-1].append(each)
    return groups


def new_session(state: WorldState, model: Model, seed: int = 3) -> Session:
    return Session(Simulation(state.copy(), seed=seed), create_prompter(model, CONFIG), model.identity.fingerprint)


def block_ids(outputs: SessionOutputs) -> list[tuple[Any, ...]]:
    return [
        (
            each.due.request_id,
            each.due.seed,
            [block.id for block in each.prompt.blocks],
            [turn.id for turn in each.prompt.turns],
            each.prompt.final_token_ids,
        )
        for each in outputs.prompts
    ]


@MANY
@given(drawn=inputs_drawn, cuts=partitions)
def test_replayed_inputs_give_the_same_world_and_the_same_block_ids(
    mill_state: WorldState, tiny_model: Model, drawn: list[Any], cuts: list[bool]
) -> None:
    """Digest after every tick, seeds, block ids, turns and final blocks."""
    groups = ticks(play(drawn), cuts)
    runs = []
    for _ in range(2):
        session = new_session(mill_state, tiny_model)
        runs.append([(block_ids(session.advance(group)), session.simulation.digest()) for group in groups])
    assert runs[0] == runs[1]


@MANY
@given(drawn=inputs_drawn, cuts=partitions, others=partitions)
def test_the_state_does_not_depend_on_the_partition_into_ticks(
    mill_state: WorldState, drawn: list[Any], cuts: list[bool], others: list[bool]
) -> None:
    """The order of the inputs decides what is true; ticks only decide when."""
    inputs = play(drawn)
    digests = []
    for partition in (cuts, others):
        simulation = Simulation(mill_state.copy(), seed=3)
        for group in ticks(inputs, partition):
            simulation.advance(simulation.tick + 1, group)
        digests.append(simulation.digest())
    assert digests[0] == digests[1]


def through_a_save(snapshot: Snapshot) -> Snapshot:
    """What writing and reading make of a snapshot."""
    with TemporaryDirectory() as folder:
        saves = SaveStore(Path(folder) / "saves.sqlite")
        saves.write("a", snapshot)
        return saves.read("a", snapshot.world)


@MANY
@given(before=inputs_drawn, after=inputs_drawn, cuts=partitions)
def test_a_restored_session_behaves_like_the_one_that_was_saved(
    mill_state: WorldState, tiny_model: Model, before: list[Any], after: list[Any], cuts: list[bool]
) -> None:
    """World, talk, prompts and next block ids, tick by tick, once every reply has ended."""
    session = new_session(mill_state, tiny_model)
    inputs = play(before)
    for group in ticks(inputs, cuts):
        session.advance(group)
    for conversation_id, talk in list(session.simulation.conversations.items()):
        for request_id, _ in talk.waiting:
            session.advance([ReplyEnded(request_id, *conversation_id, "Well.", (40, 41))])
    restored = Session.restore(
        through_a_save(session.snapshot(100)), create_prompter(tiny_model, CONFIG), tiny_model.identity.fingerprint
    )
    assert restored.simulation.digest() == session.simulation.digest()
    assert restored.simulation.tick == session.simulation.tick
    later = [replace(each, request_id=each.request_id + 100) for each in play(after)]
    for group in ticks(later, cuts):
        assert block_ids(session.advance(group)) == block_ids(restored.advance(group))
        assert restored.simulation.digest() == session.simulation.digest()
    for npc in NPCS:
        one, other = (each.transcript(ConversationId(PLAYER, npc)) for each in (session, restored))
        assert [turn.id for turn in one.turns] == [turn.id for turn in other.turns]
        assert one.pending == other.pending


def test_outputs_of_a_tick(mill_state: WorldState) -> None:
    """Changes by request, refusals apart, and the replies that are due."""
    simulation = Simulation(mill_state, seed=3)
    before = mill_state.digest()
    outputs = simulation.advance(7, [patch(1, "x", valid=False)])
    assert [each.request_id for each in outputs.refused] == [1]
    assert (outputs.changed, outputs.changed_by, mill_state.digest()) == (set(), {}, before)
    outputs = simulation.advance(9, [patch(2, "on fire"), PassTime(3, 10), Say(4, PLAYER, NPCS[0], "Hello.")])
    assert outputs.changed == {"place/yard", "time"}
    assert outputs.changed_by == {2: {"place/yard"}, 3: {"time"}}
    assert [(due.request_id, due.conversation, due.text) for due in outputs.replies] == [
        (4, ConversationId(PLAYER, NPCS[0]), "Hello.")
    ]
    assert simulation.tick == 9


def test_a_waiting_utterance_becomes_due_when_the_reply_before_ends(mill_state: WorldState) -> None:
    """Also when nothing came of that reply."""
    simulation = Simulation(mill_state, seed=3)
    said = [Say(i, PLAYER, NPCS[0], f"{i}?") for i in (1, 2, 3)]
    assert [due.request_id for due in simulation.advance(1, said).replies] == [1]
    assert [due.request_id for due in simulation.advance(2, [ReplyEnded(1, PLAYER, NPCS[0], "One.")]).replies] == [2]
    assert [due.request_id for due in simulation.advance(3, [ReplyEnded(2, PLAYER, NPCS[0], None)]).replies] == [3]
    talk = simulation.conversation(ConversationId(PLAYER, NPCS[0]))
    assert [exchange.utterance for exchange in talk.exchanges] == ["1?"]


def test_time_does_not_run_back(mill_state: WorldState) -> None:
    """A tick lies ahead of the one before."""
    simulation = Simulation(mill_state, seed=3, tick=5)
    with pytest.raises(AssertionError):
        simulation.advance(5, [])


def test_seeds_depend_on_the_session_and_the_request_alone(mill_state: WorldState) -> None:
    """Golden: a recording's sampled replies depend on it."""

    def seed(session_seed: int, request_id: int, tick: int) -> int:
        simulation = Simulation(mill_state.copy(), seed=session_seed)
        outputs: Outputs = simulation.advance(tick, [Say(request_id, PLAYER, NPCS[0], "Hello.")])
        return outputs.replies[0].seed

    assert seed(3, 1, 1) == seed(3, 1, 50) == SEED_OF_3_1
    assert len({seed(3, 1, 1), seed(3, 2, 1), seed(4, 1, 1)}) == 3


SEED_OF_3_1 = 8985219555723747
