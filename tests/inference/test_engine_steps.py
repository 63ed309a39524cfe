"""The inference engine driven step by step: no threads, no disk unless a test says so."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from transformers import AutoModelForCausalLM

from npc_engine.blocks import Block, BlockCache, BlockDamage, BlockId, BlockStore, Layout, Tier
from npc_engine.blocks.pages import PagedKV
from npc_engine.config import SamplingParams
from npc_engine.errors import BlockMemoryError, BlockStoreError, ContextOverflowError
from npc_engine.inference import (
    FailedOutput,
    FinishedOutput,
    FinishReason,
    GenerationRequest,
    InferenceEngine,
    Model,
    Output,
    Priority,
    TokenOutput,
    WarmedOutput,
    WarmUp,
)
from npc_engine.inference.context_kind import ContextKind, PagedContexts
from npc_engine.inference.paged_attention import ReferenceBackend

NUM_LAYERS = 3
MAX_STEPS = 2000
TEXTS = [[3 + (11 * i + 5 * j * j) % 380 for j in range(6 + 3 * i)] for i in range(5)]


CPU = torch.device("cpu")


@pytest.fixture(autouse=True, params=[0, 1], ids=["buffers", "pages"])
def memory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test with both kinds of contexts; pages of one token, so that limits mean the same."""
    monkeypatch.setattr(Driver, "page_tokens", request.param)


class Driver:
    """An engine with its cache, and the outputs so far. Its contexts are in pages if `page_tokens` is not 0."""

    page_tokens: ClassVar[int] = 0

    def __init__(
        self,
        model: Model,
        *,
        max_tokens: int = 4096,
        folder: Path | None = None,
        max_context_memory: int = 1 << 26,
        max_bytes: int = 64 << 20,
    ) -> None:
        self.model = model
        self.damage: list[BlockDamage] = []
        self.store = None
        if folder is not None:
            self.store = BlockStore(
                folder, owner=model.identity.digest(), max_bytes=max_bytes, on_damage=self.damage.append
            )
        max_bytes = max_tokens * model.kv_shape.num_bytes_per_token
        self.memory: PagedKV | None = None
        kind: ContextKind | None = None
        if Driver.page_tokens:
            num_pages = (max_bytes + max_context_memory) // model.kv_shape.num_bytes(Driver.page_tokens)
            self.memory = PagedKV(model.kv_shape, num_pages=num_pages, page_tokens=Driver.page_tokens, device=CPU)
        self.cache = BlockCache(model.kv_shape, CPU, max_bytes=max_bytes, store=self.store, memory=self.memory)
        if self.memory is not None:
            backend = ReferenceBackend(model.rope)
            kind = PagedContexts(self.cache, self.memory, model.rope, backend)
        self.engine = InferenceEngine(model, self.cache, max_context_memory=max_context_memory, kind=kind)
        self.outputs: list[Output] = []
        self.num_requests = 0

    def block(self, token_ids: Sequence[int], *parents: Block) -> Block:
        return Block.behind(self.model.identity, parents, token_ids)

    def layout(self, *texts: Sequence[int]) -> tuple[Block, ...]:
        """A header and blocks behind it."""
        header = self.block(texts[0])
        return (header, *(self.block(text, header) for text in texts[1:]))

    def chain(self, *texts: Sequence[int]) -> tuple[Block, ...]:
        """Blocks each behind all before: full attention."""
        blocks: tuple[Block, ...] = ()
        for text in texts:
            blocks = (*blocks, self.block(text, *blocks))
        return blocks

    def submit(
        self,
        blocks: tuple[Block, ...],
        final: Sequence[int],
        *,
        turns: tuple[Block, ...] = (),
        conversation: Hashable = "talk",
        max_tokens: int = 5,
        stop_ids: frozenset[int] = frozenset(),
        priority: Priority = Priority.PLAYER,
        forced: tuple[int, ...] = (),
        sampling: SamplingParams | None = None,
    ) -> int:
        self.num_requests += 1
        request = GenerationRequest(
            request_id=self.num_requests,
            conversation=conversation,
            blocks=blocks,
            turns=turns,
            final_token_ids=tuple(final),
            sampling=sampling or SamplingParams(max_tokens=max_tokens),
            seed=self.num_requests,
            stop_ids=stop_ids,
            priority=priority,
            forced_token_ids=forced,
        )
        self.engine.submit(request)
        return self.num_requests

    def step(self) -> list[Output]:
        outputs = self.engine.step()
        self.outputs += outputs
        self.cache.check_integrity()
        if self.memory is not None:
            self.memory.pool.check_integrity()
        return outputs

    def run(self) -> None:
        """Step until nothing is left to do."""
        for _ in range(MAX_STEPS):
            if not self.engine.has_work:
                return
            self.step()
        raise AssertionError("the engine never comes to rest")

    def steps_until(self, kind: type[Output]) -> int:
        """Step until there is an output of this kind; returns how many steps that took."""
        for num_steps in range(1, MAX_STEPS):
            if any(isinstance(output, kind) for output in self.step()):
                return num_steps
        raise AssertionError(f"no {kind.__name__}")

    def finished(self, request_id: int) -> FinishedOutput:
        (output,) = [x for x in self.outputs if isinstance(x, FinishedOutput) and x.request_id == request_id]
        return output

    def failed(self, request_id: int) -> FailedOutput:
        (output,) = [x for x in self.outputs if isinstance(x, FailedOutput) and x.request_id == request_id]
        return output

    def reply(self, request_id: int) -> tuple[int, ...]:
        return self.finished(request_id).sampled_token_ids

    def tokens(self, request_id: int) -> list[int]:
        return [x.token_id for x in self.outputs if isinstance(x, TokenOutput) and x.request_id == request_id]

    def ask(self, blocks: tuple[Block, ...], final: Sequence[int], **options: object) -> FinishedOutput:
        """Submit and run to the end."""
        request_id = self.submit(blocks, final, **options)  # type: ignore[arg-type]
        self.run()
        return self.finished(request_id)

    def references(self) -> dict[BlockId, int]:
        """Blocks that are held now: empty when nothing runs."""
        while self.engine._contexts.drop_oldest():
            pass  # in pages, an idle conversation holds its blocks
        pool = self.cache._pool
        return {block_id: pool.ref_count(block_id) for block_id in pool if pool.ref_count(block_id)}

    def drop(self, *blocks: Block) -> None:
        """Lose these blocks from memory and disk, as if evicted from a cache without room."""
        self.engine.flush()
        for block in blocks:
            if self.cache._pool.lookup(block.id):
                self.cache._pool.free(block.id)
                self.cache.memory.remove(block.id)
        if self.store is not None:
            self.store.delete([block.id for block in blocks])

    def drop_contexts(self) -> None:
        """Lose every assembled context."""
        contexts = self.engine._contexts._idle
        while contexts:
            contexts.popitem()[1].close()


@dataclass
class Talk:
    """A conversation held straight with the engine, as a session would hold it."""

    driver: Driver
    blocks: tuple[Block, ...]
    turns: tuple[Block, ...] = ()
    pending: tuple[int, ...] = ()
    history: list[FinishedOutput] = field(default_factory=list)

    def say(self, utterance: Sequence[int]) -> FinishedOutput:
        done = self.driver.ask(self.blocks, (*self.pending, *utterance), turns=self.turns)
        assert done.turn is not None
        self.turns = (*self.turns[: len(self.turns) - done.num_folded], done.turn)
        self.pending = done.pending_token_ids
        self.history.append(done)
        return done


@pytest.fixture
def driver(tiny_model: Model) -> Driver:
    return Driver(tiny_model)


def greedy(folder: Path, prompt: Sequence[int], num_tokens: int) -> tuple[int, ...]:
    """What transformers says."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    output = model.generate(
        torch.tensor([list(prompt)]), max_new_tokens=num_tokens, min_new_tokens=num_tokens, do_sample=False
    )
    return tuple(output[0, len(prompt) :].tolist())


# ── replies ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_greedy_reply_over_a_chain_is_that_of_transformers(driver: Driver, tiny_folder: Path) -> None:
    """Full attention, two utterances long: block by block, turn by turn, the same tokens as transformers' own loop."""
    talk = Talk(driver, driver.chain(*TEXTS))
    prompt = [token_id for text in TEXTS for token_id in text]
    for utterance in ([7, 8, 9], [20, 21, 22, 23]):
        prompt += utterance
        done = talk.say(utterance)
        assert done.sampled_token_ids == greedy(tiny_folder, prompt, 5)
        prompt += done.sampled_token_ids


def test_tokens_stream_one_by_one_and_the_stop_token_does_not(driver: Driver) -> None:
    """The stop token ends the reply and is part of what was sampled, not of what was said."""
    blocks = driver.layout(*TEXTS)
    free = driver.ask(blocks, [7, 8, 9], conversation="a", max_tokens=8)
    assert (free.reason, len(free.sampled_token_ids)) == (FinishReason.LENGTH, 8)
    assert free.pending_token_ids == free.sampled_token_ids[-1:]
    stop = free.sampled_token_ids[4]
    until = free.sampled_token_ids.index(stop)
    request_id = driver.submit(blocks, [7, 8, 9], conversation="b", max_tokens=8, stop_ids=frozenset({stop}))
    driver.run()
    done = driver.finished(request_id)
    assert (done.reason, done.pending_token_ids) == (FinishReason.STOP, ())
    assert done.sampled_token_ids == free.sampled_token_ids[: until + 1]
    assert driver.tokens(request_id) == list(free.sampled_token_ids[:until])


def test_the_counts_of_a_cold_a_warm_and_an_edited_prompt(driver: Driver) -> None:
    """Encoded are the final block and whatever was missing."""
    blocks = driver.layout(*TEXTS)
    num_context = sum(block.num_tokens for block in blocks)
    cold = driver.ask(blocks, [7, 8, 9], conversation="a")
    assert (cold.counts.num_prompt, cold.counts.num_cached) == (num_context + 3, 0)
    warm = driver.ask(blocks, [7, 8, 9, 10], conversation="b")
    assert (warm.counts.num_encoded, warm.counts.num_cached) == (4, num_context)
    edited = (*blocks[:2], driver.block([99] * 7, blocks[0]), *blocks[3:])
    assert driver.ask(edited, [7, 8, 9], conversation="b").counts.num_encoded == 7 + 3


def test_the_sealed_turn_is_what_anyone_computes_from_the_tokens(driver: Driver) -> None:
    """Its id is `Block.behind` of the prompt's blocks and the tokens that were computed: final block and reply."""
    blocks = driver.layout(*TEXTS)
    first = driver.ask(blocks, [7, 8, 9])
    expected = driver.block([7, 8, 9, *first.sampled_token_ids[:-1]], *blocks)
    assert first.turn == expected
    assert driver.cache.tier(expected) is Tier.MEMORY
    second = driver.ask(blocks, [*first.pending_token_ids, 30, 31], turns=(expected,))
    assert second.turn == driver.block(
        [*first.pending_token_ids, 30, 31, *second.sampled_token_ids[:-1]], *blocks, expected
    )


def test_a_sealed_turn_holds_the_keys_of_encoding_it(driver: Driver) -> None:
    """What a reply leaves behind is, to float32's rounding, the block that would be encoded from its tokens."""
    blocks = driver.chain(*TEXTS)
    turn = driver.ask(blocks, [7, 8, 9]).turn
    assert turn is not None
    other = Driver(driver.model)
    other.engine.warm("w", WarmUp((*blocks, turn)))
    other.run()
    left, encoded = driver.cache.get(turn.id), other.cache.get(turn.id)
    torch.testing.assert_close(left.k, encoded.k, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(left.v, encoded.v, atol=1e-4, rtol=1e-4)


# ── who goes first ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_player_goes_before_ambient_talk(driver: Driver) -> None:
    """Submitted later, answered earlier; within one priority, first come is first served."""
    blocks = driver.layout(*TEXTS)
    driver.engine.warm("w", WarmUp(blocks))
    driver.run()
    driver.outputs.clear()
    ambient = driver.submit(blocks, [1, 2], conversation="a", priority=Priority.AMBIENT)
    first, second = (driver.submit(blocks, [1, 2], conversation=name) for name in "bc")
    driver.run()
    order = [x.request_id for x in driver.outputs if isinstance(x, TokenOutput)]
    assert order[:2] == [first, second]
    assert order[-5:] == [ambient] * 5


def test_ambient_talk_does_not_stall_a_reply_that_is_being_spoken(driver: Driver) -> None:
    """While a player listens, every step brings a token."""
    blocks = driver.layout(*TEXTS[:2])
    driver.submit(blocks, [1, 2], conversation="player", max_tokens=8)
    driver.steps_until(TokenOutput)
    driver.submit(driver.layout([5] * 40, [6] * 50), [1], conversation="ambient", priority=Priority.AMBIENT)
    assert [bool(driver.step()) for _ in range(6)] == [True] * 6


def test_an_utterance_preempts_background_encoding_within_one_layer(driver: Driver) -> None:
    """In the middle of a background batch, a player whose blocks are there waits for not a single layer more."""
    near = driver.layout(*TEXTS)
    driver.engine.warm("near", WarmUp(near))
    driver.run()
    far = driver.layout([9] * 50, [8] * 60, [7] * 70)
    driver.engine.warm("far", WarmUp(far))
    driver.step()  # finds out what is missing
    driver.step()  # one layer of it
    driver.submit(near, [1, 2, 3])
    assert driver.steps_until(TokenOutput) == 1
    driver.run()
    assert driver.engine.tiers(far) == (Tier.MEMORY,) * 3


def test_a_cold_utterance_goes_in_front_of_background_encoding(driver: Driver) -> None:
    """Its own two waves (header, then the rest) and its final block take exactly their layers."""
    far = driver.layout([9] * 50, [8] * 60)
    driver.engine.warm("far", WarmUp(far))
    driver.step()
    driver.step()
    driver.submit(driver.layout(*TEXTS), [1, 2, 3])
    assert driver.steps_until(TokenOutput) == 2 * NUM_LAYERS + 1
    driver.run()
    assert driver.references() == {}


def test_an_utterance_takes_over_a_half_done_background_job(driver: Driver) -> None:
    """What background work has computed of its blocks is not computed again."""
    blocks = driver.layout(*TEXTS)
    driver.engine.warm("w", WarmUp(blocks[:1]))
    driver.run()
    driver.engine.warm("w", WarmUp(blocks))
    driver.step()  # looks up what is missing
    for _ in range(NUM_LAYERS - 1):
        driver.step()
    driver.submit(blocks, [1, 2, 3])
    assert driver.steps_until(TokenOutput) == 2  # the last layer, the final block
    driver.run()
    assert driver.references() == {}


def test_a_later_warm_up_of_the_same_key_supersedes(driver: Driver) -> None:
    """Only the last one is done, and told of once."""
    old, new = driver.layout(*TEXTS[:2]), driver.layout(*TEXTS[2:4])
    driver.engine.warm("w", WarmUp(old))
    driver.engine.warm("w", WarmUp(new))
    driver.run()
    assert driver.engine.tiers((*old, *new)) == (Tier.MISSING,) * 2 + (Tier.MEMORY,) * 2
    assert driver.outputs == [WarmedOutput("w")]


def test_warm_ups_share_one_batch(driver: Driver) -> None:
    """Two NPCs behind one header: the header's layers, then one batch of everything else."""
    header = driver.block(TEXTS[0])
    for name in "ab":
        own = [driver.block([ord(name)] * 5, header), driver.block([1 + ord(name)] * 5, header)]
        driver.engine.warm(name, WarmUp((header, *own)))
    num_steps = 0
    while len(driver.outputs) < 2:
        driver.step()
        num_steps += 1
    # Both are looked up one after the other, before each batch and after the last one.
    assert num_steps == 2 + NUM_LAYERS + 2 + NUM_LAYERS + 2
    assert driver.outputs == [WarmedOutput("a"), WarmedOutput("b")]


def test_idle_time_places_an_edit_into_the_conversation(driver: Driver) -> None:
    """After an edited block was warmed, the next utterance finds the context in place."""
    talk = Talk(driver, driver.layout(*TEXTS))
    talk.say([7, 8, 9])
    edited = (*talk.blocks[:2], driver.block([99] * 7, talk.blocks[0]), *talk.blocks[3:])
    driver.engine.warm("talk", WarmUp(edited, talk.turns, "talk"))
    driver.run()
    context = driver.engine._contexts.peek("talk")
    assert context is not None
    assert context.stale(Layout.of((*edited, *talk.turns))) == []


def test_a_conversation_has_one_reply_at_a_time(driver: Driver) -> None:
    """The second request of a conversation waits, another conversation doesn't."""
    blocks = driver.layout(*TEXTS)
    first = driver.submit(blocks, [1], conversation="a")
    driver.steps_until(TokenOutput)
    second = driver.submit(blocks, [2], conversation="a")
    third = driver.submit(blocks, [3], conversation="b")
    driver.run()
    order = [x.request_id for x in driver.outputs if isinstance(x, TokenOutput)]
    assert order.index(third) < order.index(second)
    assert order.index(second) > max(i for i, each in enumerate(order) if each == first)


# ── cancelling ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_cancel_while_waiting_ends_within_one_step(driver: Driver) -> None:
    """Nothing was computed, so there is no turn, and nothing is held."""
    request_id = driver.submit(driver.layout(*TEXTS), [1, 2])
    driver.engine.cancel(request_id)
    outputs = driver.step()
    assert isinstance(outputs[0], FinishedOutput)
    assert (outputs[0].reason, outputs[0].turn, outputs[0].sampled_token_ids) == (FinishReason.CANCELLED, None, ())
    assert driver.references() == {}


def test_cancel_in_the_middle_of_encoding(driver: Driver) -> None:
    """The request ends at once; its blocks are finished in idle time, and held by nobody."""
    blocks = driver.layout(*TEXTS)
    request_id = driver.submit(blocks, [1, 2])
    for _ in range(NUM_LAYERS + 2):  # into the second wave
        driver.step()
    assert driver.references() != {}
    driver.engine.cancel(request_id)
    driver.step()
    assert driver.finished(request_id).turn is None
    driver.run()
    assert driver.references() == {}
    assert driver.ask(blocks, [1, 2]).counts.num_encoded == 2


def test_cancel_in_mid_reply_ends_within_one_step_and_seals_what_was_said(driver: Driver) -> None:
    """The turn covers every token that was computed; the conversation goes on as if the reply had ended there."""
    blocks = driver.layout(*TEXTS)
    whole = driver.ask(blocks, [1, 2], conversation="whole", max_tokens=9).sampled_token_ids
    request_id = driver.submit(blocks, [1, 2], conversation="cut", max_tokens=9)
    for _ in range(3):
        driver.steps_until(TokenOutput)
    driver.engine.cancel(request_id)
    num_tokens = len(driver.tokens(request_id))
    driver.step()
    cut = driver.finished(request_id)
    assert cut.reason is FinishReason.CANCELLED
    assert cut.sampled_token_ids == whole[:3]
    assert len(driver.tokens(request_id)) == num_tokens
    assert cut.turn == driver.block([1, 2, *whole[:2]], *blocks)
    assert cut.pending_token_ids == whole[2:3]

    follow_up = driver.ask(blocks, [*cut.pending_token_ids, 5, 6], turns=(cut.turn,), conversation="cut")
    fresh = Driver(driver.model)
    assert follow_up.sampled_token_ids == fresh.ask(blocks, [1, 2, *whole[:3], 5, 6]).sampled_token_ids
    assert driver.references() == {}


def test_cancel_of_an_unknown_or_finished_request_is_passed_over(driver: Driver) -> None:
    """Cancelling may come too late."""
    done = driver.ask(driver.layout(*TEXTS), [1, 2])
    driver.engine.cancel(done.request_id)
    driver.engine.cancel(12345)
    assert driver.step() == []


# ── what gets lost ───────────────────────────────────────────────────────────────────────────────────────────────


def unbroken(model: Model, utterances: Sequence[Sequence[int]]) -> Talk:
    driver = Driver(model)
    talk = Talk(driver, driver.chain(*TEXTS))
    for utterance in utterances:
        talk.say(utterance)
    return talk


UTTERANCES = ([7, 8, 9], [20, 21], [30, 31, 32, 33], [40])


@pytest.mark.parametrize("lost", [(0,), (1,), (0, 1), (0, 1, 2)])
def test_lost_turns_are_folded_into_the_next_one(tiny_model: Model, lost: tuple[int, ...]) -> None:
    """From the first lost turn on, everything is computed again; under full attention the reply is the same."""
    expected = unbroken(tiny_model, UTTERANCES)
    driver = Driver(tiny_model)
    talk = Talk(driver, driver.chain(*TEXTS))
    for utterance in UTTERANCES[:3]:
        talk.say(utterance)
    turns = talk.turns
    driver.drop(*(turns[i] for i in lost))
    driver.drop_contexts()
    done = talk.say(UTTERANCES[3])
    assert done.sampled_token_ids == expected.history[3].sampled_token_ids
    assert done.num_folded == 3 - lost[0]
    folded = [token_id for turn in turns[lost[0] :] for token_id in turn.token_ids]
    final = [*talk.history[2].pending_token_ids, *UTTERANCES[3]]
    assert done.turn == driver.block([*folded, *final, *done.sampled_token_ids[:-1]], *talk.blocks, *turns[: lost[0]])
    assert done.counts.num_encoded == len(folded) + len(final)
    assert done.counts.num_prompt == expected.history[3].counts.num_prompt
    assert len(talk.turns) == lost[0] + 1
    assert driver.references() == {}


def test_a_lost_turn_is_not_missed_while_the_context_holds_it(tiny_model: Model) -> None:
    """What lies in place needs no cached copy."""
    driver = Driver(tiny_model)
    talk = Talk(driver, driver.chain(*TEXTS))
    talk.say(UTTERANCES[0])
    driver.drop(*talk.turns)
    done = talk.say(UTTERANCES[1])
    assert (done.num_folded, done.counts.num_encoded) == (0, 1 + len(UTTERANCES[1]))
    assert done.sampled_token_ids == unbroken(tiny_model, UTTERANCES[:2]).history[1].sampled_token_ids


def test_a_context_that_was_evicted_is_assembled_again(tiny_model: Model) -> None:
    """With room for one context, two alternating conversations say what they say with room for both."""
    replies = []
    for max_context_memory in (1 << 26, 1):
        driver = Driver(tiny_model, max_context_memory=max_context_memory)
        blocks = driver.layout(*TEXTS)
        turns: dict[str, tuple[Block, ...]] = {"a": (), "b": ()}
        pending: dict[str, tuple[int, ...]] = {"a": (), "b": ()}
        said = []
        for i, name in enumerate("abaabb"):
            done = driver.ask(blocks, [*pending[name], 50 + i], turns=turns[name], conversation=name)
            assert done.turn is not None
            assert (done.num_folded, i == 0 or done.counts.num_encoded == len(pending[name]) + 1) == (0, True)
            turns[name] = (*turns[name], done.turn)
            pending[name] = done.pending_token_ids
            said.append(done.sampled_token_ids)
        replies.append(said)
        assert len(driver.engine._contexts._idle) == (2 if max_context_memory > 1 else 1)
    assert replies[0] == replies[1]


def test_a_swapped_block_moves_the_conversation_and_computes_nothing_else(driver: Driver) -> None:
    """An edit in the middle of a talk: the edited block and the utterance are computed, the turns are not."""
    talk = Talk(driver, driver.layout(*TEXTS))
    talk.say([7, 8, 9])
    talk.say([10, 11])
    edited = driver.block([99] * 9, talk.blocks[0])
    talk.blocks = (*talk.blocks[:2], edited, *talk.blocks[3:])
    done = talk.say([12, 13])
    assert (done.num_folded, done.counts.num_encoded) == (0, edited.num_tokens + 1 + 2)
    # The same layout assembled from nothing but the cache gives the same reply.
    driver.drop_contexts()
    again = driver.ask(talk.blocks, [*talk.history[1].pending_token_ids, 12, 13], turns=talk.turns[:2])
    assert again.sampled_token_ids == done.sampled_token_ids


def test_a_damaged_block_in_mid_conversation_is_encoded_again(tiny_model: Model, tmp_path: Path) -> None:
    """Flipped on disk, evicted from memory: refused, reported, deleted, computed, and the reply is the same."""
    expected = unbroken(tiny_model, UTTERANCES[:2])
    driver = Driver(tiny_model, folder=tmp_path / "blocks")
    talk = Talk(driver, driver.chain(*TEXTS))
    talk.say(UTTERANCES[0])
    driver.engine.flush()
    assert driver.store is not None
    victim = talk.blocks[2]
    with driver.store._env.begin(write=True, db=driver.store._values) as transaction:
        value = bytearray(transaction.get(victim.id))
        value[-5] ^= 4
        transaction.put(victim.id, bytes(value))
    driver.drop_contexts()
    for block in (*talk.blocks, *talk.turns):  # out of memory, all of them; only one is damaged on disk
        driver.cache._pool.free(block.id)
        driver.cache.memory.remove(block.id)
    done = talk.say(UTTERANCES[1])
    assert done.sampled_token_ids == expected.history[1].sampled_token_ids
    assert [damage.block_id for damage in driver.damage] == [victim.id]
    assert done.counts.num_encoded == victim.num_tokens + 1 + len(UTTERANCES[1])
    driver.engine.flush()
    assert driver.store.get(victim.id) is not None
    driver.engine.close()


def test_a_restarted_engine_computes_the_final_block_alone(tiny_model: Model, tmp_path: Path) -> None:
    """Blocks and turns come from disk; the reply is the same as without a restart."""
    expected = unbroken(tiny_model, UTTERANCES[:2])
    driver = Driver(tiny_model, folder=tmp_path / "blocks")
    talk = Talk(driver, driver.chain(*TEXTS))
    talk.say(UTTERANCES[0])
    driver.engine.close()
    driver.engine.close()
    talk.driver = Driver(tiny_model, folder=tmp_path / "blocks")
    done = talk.say(UTTERANCES[1])
    assert done.counts.num_encoded == 1 + len(UTTERANCES[1])
    assert done.sampled_token_ids == expected.history[1].sampled_token_ids
    talk.driver.engine.close()


# ── limits ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_prompt_beyond_the_last_position_fails_alone(driver: Driver) -> None:
    """ContextOverflowError comes back as the request's output, nothing stays held, and the next request is served."""
    blocks = driver.layout(*TEXTS)
    limit = driver.model.config.max_position_embeddings
    fits = limit - sum(block.num_tokens for block in blocks) - 5
    bad = driver.submit(blocks, [1] * (fits + 1))
    driver.run()
    assert isinstance(driver.failed(bad).error, ContextOverflowError)
    assert driver.references() == {}
    assert driver.ask(blocks, [1, 2]).reason is FinishReason.LENGTH
    assert len(driver.ask(blocks, [1] * fits).sampled_token_ids) == 5


@pytest.mark.parametrize("with_disk", [False, True])
def test_blocks_beyond_memory_fail_alone(tiny_model: Model, tmp_path: Path, with_disk: bool) -> None:
    """BlockMemoryError comes back as the request's output, nothing stays held, and a smaller request is served."""
    driver = Driver(tiny_model, max_tokens=40, folder=tmp_path / "blocks" if with_disk else None)
    bad = driver.submit(driver.layout([1] * 15, [2] * 15, [3] * 15), [1, 2])
    driver.run()
    assert isinstance(driver.failed(bad).error, BlockMemoryError)
    assert driver.references() == {}
    small = driver.layout([1] * 15, [2] * 15)
    assert driver.ask(small, [1, 2]).turn is not None
    assert driver.references() == {}
    again = driver.submit(driver.layout([1] * 15, [2] * 15, [3] * 15), [1, 2])
    driver.run()
    assert isinstance(driver.failed(again).error, BlockMemoryError)
    assert driver.references() == {}
    driver.engine.close()


def test_no_room_for_a_turn_does_not_hurt_the_reply(tiny_model: Model) -> None:
    """The context has it; and when that is lost, too, the turn is folded."""
    driver = Driver(tiny_model, max_tokens=30)
    talk = Talk(driver, driver.chain([1] * 14, [2] * 14))
    first = talk.say([7] * 31)
    assert first.turn is not None
    assert driver.cache.tier(first.turn) is Tier.MISSING
    assert talk.say([8]).num_folded == 0
    driver.drop_contexts()
    assert talk.say([9]).num_folded == 2


def test_a_block_twice_in_one_layout_is_given_back_twice(driver: Driver) -> None:
    """Two entities with the same text are one block at two positions."""
    header, shared, other = driver.layout(*TEXTS[:3])
    driver.ask((header, shared, other, shared), [1, 2])
    driver.ask((header, shared, other, shared), [1, 2], conversation="second")  # this time found in memory
    assert driver.references() == {}


def test_a_warm_up_beyond_memory_is_given_up(tiny_model: Model, tmp_path: Path) -> None:
    """Warming is a courtesy: whoever waits for it is told, and the engine comes to rest."""
    driver = Driver(tiny_model, max_tokens=40, folder=tmp_path / "blocks")
    driver.engine.warm("w", WarmUp(driver.layout([1] * 15, [2] * 15, [3] * 15)))
    driver.run()
    assert driver.outputs == [WarmedOutput("w")]
    assert driver.references() == {}
    driver.engine.close()


def test_a_warm_up_beyond_memory_is_given_up_without_a_store(tiny_model: Model) -> None:
    """The same for a cache in memory alone."""
    driver = Driver(tiny_model, max_tokens=40)
    driver.engine.warm("w", WarmUp(driver.layout([1] * 15, [2] * 15, [3] * 15)))
    driver.run()
    assert driver.outputs == [WarmedOutput("w")]


def test_every_warm_up_is_told_of_even_when_a_later_one_has_no_room(tiny_model: Model, tmp_path: Path) -> None:
    """Whoever asked for a small NPC hears of it, though a large one next to it does not fit."""
    blocks = tmp_path / "blocks"
    large = Driver(tiny_model, folder=blocks)
    small_layout, large_layout = large.layout([1] * 5, [2] * 5), large.layout([3] * 15, [4] * 15, [5] * 15)
    large.engine.warm("w", WarmUp((*small_layout, *large_layout)))
    large.run()
    large.engine.close()
    driver = Driver(tiny_model, max_tokens=40, folder=blocks)
    driver.engine.warm("small", WarmUp(small_layout))
    driver.engine.warm("large", WarmUp(large_layout))
    driver.run()
    assert sorted(str(x.key) for x in driver.outputs if isinstance(x, WarmedOutput)) == ["large", "small"]
    driver.engine.close()


def test_a_full_disk_does_not_end_the_talk(tiny_model: Model, tmp_path: Path) -> None:
    """What can't be written stays in memory, or is computed again."""
    driver = Driver(tiny_model, folder=tmp_path / "blocks", max_bytes=1 << 16)
    talk = Talk(driver, driver.layout([1] * 200, [2] * 200, [3] * 200))
    for utterance in UTTERANCES:
        talk.say(utterance)
    with pytest.raises(BlockStoreError, match="max_store_size"):
        driver.engine.flush()
    driver.engine.close()


def test_full_prefill_is_the_first_greedy_token_of_transformers(driver: Driver, tiny_folder: Path) -> None:
    """The baseline of every benchmark computes the same function, and leaves nothing behind."""
    prompt = [(7 * i * i + 3 * i) % 400 for i in range(90)]
    assert driver.engine.full_prefill(tuple(prompt)) == greedy(tiny_folder, prompt, 1)[0]
    assert not driver.engine.has_work
    assert driver.engine.cache_stats().num_blocks == 0


def test_an_idle_conversation_makes_room_for_one_that_is_asked(tiny_model: Model) -> None:
    """In pages it holds its blocks; it loses them before anybody is refused, and goes on all the same."""
    driver = Driver(tiny_model, max_tokens=100)
    near, far = driver.layout([1] * 10, [2] * 50), driver.layout([1] * 10, [3] * 50)
    first = driver.ask(near, [5, 6], conversation="near")
    driver.ask(far, [5, 6], conversation="far")
    assert first.turn is not None
    again = driver.ask(near, [7], conversation="near", turns=(first.turn,))
    fresh = Driver(tiny_model)
    expected = fresh.ask(near, [7], conversation="near", turns=(fresh.ask(near, [5, 6], conversation="near").turn,))
    assert again.sampled_token_ids == expected.sampled_token_ids
