"""From texts to blocks: shared, budgeted, and safe."""

from __future__ import annotations

from dataclasses import replace

import pytest

from npc_engine.blocks import Block
from npc_engine.config import EngineConfig, SamplingParams
from npc_engine.dialogue.conversation import ConversationId
from npc_engine.errors import ContextOverflowError, UtteranceError
from npc_engine.inference import Model
from npc_engine.runtime.fidelity import Fidelity
from npc_engine.runtime.prompt import Prompter, Transcript
from npc_engine.runtime.session import create_prompter
from npc_engine.world import EntityId, WorldState, split

PLAYER = EntityId("player/player")
ANNA, BEN = (ConversationId(PLAYER, EntityId(f"character/{name}")) for name in ("anna", "ben"))
CONFIG = EngineConfig(max_utterance_tokens=64, sampling=SamplingParams(max_tokens=8))
BUDGET_FOR_REPLY = 8


@pytest.fixture
def prompter(tiny_model: Model) -> Prompter:
    return create_prompter(tiny_model, CONFIG)


def with_budget(model: Model, max_tokens: int) -> Prompter:
    return create_prompter(model, replace(CONFIG, max_context_tokens=max_tokens))


def test_a_prompt_is_the_template_s_own_rendering(
    mill_state: WorldState, prompter: Prompter, tiny_model: Model
) -> None:
    """Header, blocks and final block, decoded, are a system turn, an utterance and an open reply."""
    prompt = prompter.prompt(mill_state, ANNA, Transcript(), "Hello there.")
    tokenizer, template = tiny_model.tokenizer, tiny_model.template
    assert prompt.token_ids[: len(template.system_open)] == template.system_open
    texts = "".join(owned.text.text for owned in prompt.owned)
    assert texts in tokenizer.decode(prompt.token_ids)
    assert prompt.final_token_ids == (
        *template.user_open,
        *tokenizer.encode_text("Hello there."),
        *template.assistant_open,
    )


def test_every_block_hangs_behind_the_header_alone(mill_state: WorldState, tiny_model: Model) -> None:
    """Fidelity fast: the paper's block, started like every prompt."""
    prompt = create_prompter(tiny_model, replace(CONFIG, fidelity="fast")).prompt(mill_state, ANNA, Transcript())
    assert prompt.header.parents == ()
    assert {block.parents for block in prompt.blocks[1:]} == {(prompt.header.id,)}


def test_balanced_encodes_neighbours_together(mill_state: WorldState, tiny_model: Model) -> None:
    """Within one part of the prompt, until a group has 100 tokens; a part never sees another."""
    prompt = create_prompter(tiny_model, replace(CONFIG, fidelity="balanced")).prompt(mill_state, ANNA, Transcript())
    group: list[Block] = []
    part = None
    num_groups = 0
    for each in prompt.owned:
        own = (split(each.text.entity)[0], each.text.section.partition("/")[0])
        if own != part or sum(block.num_tokens for block in group) >= 100:
            group, part = [], own
            num_groups += 1
        assert each.block.parents == (prompt.header.id, *(block.id for block in group))
        group.append(each.block)
    assert 1 < num_groups < len(prompt.owned)


def test_exact_is_full_attention(mill_state: WorldState, tiny_model: Model) -> None:
    """Every block behind all before it, and what was said is computed again when one of them changes."""
    prompter = create_prompter(tiny_model, replace(CONFIG, fidelity="exact"))
    prompt = prompter.prompt(mill_state, ANNA, Transcript(), "Hello.")
    ids = [block.id for block in prompt.blocks]
    assert [block.parents for block in prompt.blocks] == [tuple(ids[:i]) for i in range(len(ids))]
    turn = prompter.turn(prompt, [5, 6, 7], 0)
    again = prompter.prompt(mill_state, ANNA, Transcript((turn,)), "And?")
    assert again.turns == (turn,)
    moved = prompter.assemble([each.text for each in prompt.owned[1:]], Transcript((turn,)), "And?")
    assert moved.turns[0].token_ids == turn.token_ids
    assert moved.turns[0].id != turn.id


def test_auto_suits_the_model() -> None:
    """A model that was tuned for blocks needs nothing else."""
    assert Fidelity.of("auto", is_tuned=True) is Fidelity.FAST
    assert Fidelity.of("auto", is_tuned=False) is Fidelity.BALANCED
    assert Fidelity.of("exact", is_tuned=True) is Fidelity.EXACT


def test_what_npcs_share_is_one_block(mill_state: WorldState, prompter: Prompter) -> None:
    """The setting and the lore that both know have equal ids for both; sheets do not."""
    anna, ben = (prompter.prompt(mill_state, each, Transcript()) for each in (ANNA, BEN))
    of = [{(o.text.entity, o.text.section): o.block.id for o in prompt.owned} for prompt in (anna, ben)]
    shared = [("world", "setting"), ("lore/flood", "text"), ("time", "phrase"), (PLAYER, "description")]
    for key in shared:
        assert of[0][key] == of[1][key]  # type: ignore[index]
    assert anna.header == ben.header


def test_what_an_npc_does_not_know_is_not_in_its_prompt(mill_state: WorldState, prompter: Prompter) -> None:
    """The stone is Ben's secret."""
    assert "lore/stone" not in {o.text.entity for o in prompter.prompt(mill_state, ANNA, Transcript()).owned}
    assert "lore/stone" in {o.text.entity for o in prompter.prompt(mill_state, BEN, Transcript()).owned}


def test_an_edit_changes_one_block_and_undoing_it_brings_the_old_one_back(
    mill_state: WorldState, prompter: Prompter
) -> None:
    """Undo costs nothing."""
    before = prompter.prompt(mill_state, ANNA, Transcript()).blocks
    path = "/places/yard/conditions/wheel"
    mill_state.apply([{"op": "replace", "path": path, "value": "The wheel turns."}])
    after = prompter.prompt(mill_state, ANNA, Transcript()).blocks
    assert len(set(after) - set(before)) == 1
    mill_state.apply([{"op": "replace", "path": path, "value": "The wheel stands still."}])
    assert prompter.prompt(mill_state, ANNA, Transcript()).blocks == before


def test_a_short_budget_leaves_out_blocks_then_the_oldest_turns(
    mill_state: WorldState, tiny_model: Model, prompter: Prompter
) -> None:
    """Within the budget, with room for the longest utterance and the reply; nothing that stays is reordered."""
    whole = prompter.prompt(mill_state, ANNA, Transcript()).blocks
    turns = tuple(Block.behind(tiny_model.identity, whole, [seed] * 50) for seed in range(3, 9))
    lengths = set()
    for max_tokens in range(4000, 700, -60):
        try:
            prompt = with_budget(tiny_model, max_tokens).prompt(mill_state, ANNA, Transcript(turns), "Hello.")
        except ContextOverflowError:
            break
        lengths.add((len(prompt.blocks), len(prompt.turns)))
        assert len(prompt.token_ids) <= max_tokens - BUDGET_FOR_REPLY
        assert [block for block in whole if block in prompt.blocks] == list(prompt.blocks)
        assert prompt.turns == turns[len(turns) - len(prompt.turns) :]
        assert len(prompt.turns) == 0 or len(prompt.blocks) == len(whole) or len(prompt.turns) == 0
    assert len(lengths) > 3, "the budget did cut"


def test_the_layout_does_not_depend_on_the_utterance(mill_state: WorldState, tiny_model: Model) -> None:
    """What was warmed without an utterance is what a prompt with a short one needs."""
    prompter = with_budget(tiny_model, 1200)
    warmed = prompter.prompt(mill_state, BEN, Transcript())
    assert prompter.prompt(mill_state, BEN, Transcript(), "Hello.").blocks == warmed.blocks


def test_the_longest_utterance_does_not_change_the_layout(mill_state: WorldState, tiny_model: Model) -> None:
    """The longest utterance that is let in finds the warmed layout."""
    longest = "e " * 32
    num_tokens = len(tiny_model.tokenizer.encode_text(longest))
    assert num_tokens <= 64
    while num_tokens < 64:
        longest += "!"
        num_tokens = len(tiny_model.tokenizer.encode_text(longest))
    whole = with_budget(tiny_model, 4096).prompt(mill_state, BEN, Transcript())
    template = tiny_model.template
    markup = max(len(template.user_open), len(template.next_user_open)) + len(template.assistant_open)
    # one more for the token that may have ended the reply before
    exact = sum(block.num_tokens for block in whole.blocks) + 64 + markup + 1 + CONFIG.sampling.max_tokens
    prompter = with_budget(tiny_model, exact)  # every block fits, to the token
    prompter.check_utterance(longest)
    assert prompter.prompt(mill_state, BEN, Transcript()).blocks == whole.blocks
    assert prompter.prompt(mill_state, BEN, Transcript(), longest).blocks == whole.blocks


def test_the_limit_of_an_utterance_is_exact(prompter: Prompter, tiny_model: Model) -> None:
    """64 tokens pass, 65 don't; the message names the option."""
    text = "!"
    while len(tiny_model.tokenizer.encode_text(text + "?!")) <= 64:
        text += "?!"
    while len(tiny_model.tokenizer.encode_text(text)) < 64:
        text += "!"
    assert len(tiny_model.tokenizer.encode_text(text)) == 64
    prompter.check_utterance(text)
    with pytest.raises(UtteranceError, match=r"limit is 64 \(max_utterance_tokens\)"):
        prompter.check_utterance(text + "?!?!")
    with pytest.raises(UtteranceError, match="empty"):
        prompter.check_utterance(" \n")
    with pytest.raises(UtteranceError, match="characters"):
        prompter.check_utterance("a" * 20_000)
