"""A session: transcripts, saves, and models that change in between."""

from __future__ import annotations

import pytest

from npc_engine.blocks import Block
from npc_engine.config import EngineConfig, SamplingParams
from npc_engine.dialogue.conversation import ConversationId
from npc_engine.inference import Model
from npc_engine.runtime.session import Session, create_prompter
from npc_engine.runtime.simulation import ReplyEnded, Say, Simulation
from npc_engine.world import EntityId, WorldState

ANNA = ConversationId(EntityId("player/player"), EntityId("character/anna"))
CONFIG = EngineConfig(max_utterance_tokens=64, sampling=SamplingParams(max_tokens=8))


@pytest.fixture
def session(mill_state: WorldState, tiny_model: Model) -> Session:
    return Session(Simulation(mill_state, seed=3), create_prompter(tiny_model, CONFIG), tiny_model.identity.fingerprint)


def talk(session: Session, request_id: int, text: str, sampled: tuple[int, ...], **ended: object) -> None:
    session.advance([Say(request_id, *ANNA, text)])
    session.advance([ReplyEnded(request_id, *ANNA, "Yes.", sampled, **ended)])  # type: ignore[arg-type]


def test_a_turn_is_the_final_block_and_the_reply_behind_everything(session: Session, tiny_model: Model) -> None:
    """The stop token is not in it: the template writes it again."""
    (due,) = session.advance([Say(1, *ANNA, "Hello.")]).prompts
    session.advance([ReplyEnded(1, *ANNA, "Yes.", (30, 31, 2), is_stopped=True)])
    transcript = session.transcript(ANNA)
    expected = Block.behind(tiny_model.identity, due.prompt.blocks, (*due.prompt.final_token_ids, 30, 31))
    assert transcript.turns == (expected,)
    assert transcript.pending == ()


def test_the_last_token_of_a_cut_reply_goes_in_front_of_the_next_utterance(session: Session) -> None:
    """It was said, but never computed."""
    talk(session, 1, "Hello.", (30, 31, 32), is_stopped=False)
    assert session.transcript(ANNA).pending == (32,)
    (due,) = session.advance([Say(2, *ANNA, "And?")]).prompts
    assert due.prompt.final_token_ids[0] == 32
    assert due.prompt.turns == session.transcript(ANNA).turns


def test_folded_turns_give_way_to_the_one_that_holds_them(session: Session, tiny_model: Model) -> None:
    """Two lost turns and the new one are one block now."""
    for request_id in (1, 2, 3):
        talk(session, request_id, "Hello.", (30, request_id, 2))
    old = session.transcript(ANNA).turns
    (due,) = session.advance([Say(4, *ANNA, "And?")]).prompts
    session.advance([ReplyEnded(4, *ANNA, "Yes.", (40, 2), num_folded=2)])
    tokens = (*old[1].token_ids, *old[2].token_ids, *due.prompt.final_token_ids, 40)
    assert session.transcript(ANNA).turns == (
        old[0],
        Block.behind(tiny_model.identity, (*due.prompt.blocks, old[0]), tokens),
    )


def test_an_utterance_that_came_to_nothing_leaves_no_trace(session: Session) -> None:
    """As if it had not been said."""
    before = session.simulation.digest()
    session.advance([Say(1, *ANNA, "Hello.")])
    session.advance([ReplyEnded(1, *ANNA, None)])
    assert session.transcript(ANNA).turns == ()
    (due,) = session.advance([Say(2, *ANNA, "Hello?")]).prompts
    assert due.prompt.turns == ()
    assert before != session.simulation.digest()


def test_with_another_model_the_talk_is_tokenized_again(session: Session, tiny_model: Model) -> None:
    """All of it is pending and in the template's markup, and the next prompt computes it once."""
    talk(session, 1, "Hello.", (30, 2))
    talk(session, 2, "And you?", (31, 2))
    restored = Session.restore(session.snapshot(3), create_prompter(tiny_model, CONFIG), "another model")
    transcript = restored.transcript(ANNA)
    assert transcript.turns == ()
    template, tokenizer = tiny_model.template, tiny_model.tokenizer
    assert transcript.pending == (
        *template.user_open,
        *tokenizer.encode_text("Hello."),
        *template.assistant_open,
        *tokenizer.encode_text("Yes."),
        *template.next_user_open,
        *tokenizer.encode_text("And you?"),
        *template.assistant_open,
        *tokenizer.encode_text("Yes."),
    )
    (due,) = restored.advance([Say(3, *ANNA, "Now?")]).prompts
    assert due.prompt.final_token_ids[: len(transcript.pending)] == transcript.pending
    assert due.prompt.final_token_ids[len(transcript.pending) :][: len(template.next_user_open)] == (
        template.next_user_open
    )


def test_a_long_talk_survives_another_model(session: Session, tiny_model: Model) -> None:
    """Older exchanges are left out, as older turns are."""
    for request_id in range(1, 80):
        talk(session, request_id, "Tell me more about the wheel, please. " * 2, (30, 2))
    restored = Session.restore(session.snapshot(100), create_prompter(tiny_model, CONFIG), "another model")
    outputs = restored.advance([Say(100, *ANNA, "Now?")])
    assert outputs.failed == ()
    (due,) = outputs.prompts
    assert len(due.prompt.token_ids) + CONFIG.sampling.max_tokens <= CONFIG.max_context_tokens


def test_a_snapshot_has_no_reply_that_is_being_spoken(session: Session, tiny_model: Model) -> None:
    """Restored, the NPC is free to answer."""
    session.advance([Say(1, *ANNA, "Hello.")])
    restored = Session.restore(
        session.snapshot(2), create_prompter(tiny_model, CONFIG), tiny_model.identity.fingerprint
    )
    assert len(restored.advance([Say(2, *ANNA, "Hello?")]).prompts) == 1


def test_a_snapshot_names_the_blocks_of_every_entity(session: Session) -> None:
    """Whoever prunes knows what a save refers to."""
    snapshot = session.snapshot(1)
    owned = {(each.entity, each.section): each.block_id for each in snapshot.entity_blocks}
    for npc in session.state.npcs():
        for each in session.prompt(ConversationId(ANNA.player, npc)).owned:
            assert owned[each.text.entity, each.text.section] == each.block.id
