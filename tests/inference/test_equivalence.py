"""Blocks give what transformers gives: the proof that everything faster is measured against.

Float32, tiny random checkpoints of every family, random layouts. The bound is 1e-4 on any logit; logits here span
several units.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from npc_engine.blocks import BlockStore, Layout
from tests.inference.builders import FAMILIES, Family, tiny_checkpoint
from tests.inference.harness import Harness
from tests.inference.reference import LayerKV, Reference

WAYS = ["assembled", "segmented"]

token_ids = st.integers(min_value=0, max_value=255)
pieces = st.lists(st.lists(token_ids, min_size=1, max_size=24), min_size=1, max_size=6)
finals = st.lists(token_ids, min_size=1, max_size=16)
thorough = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)


@pytest.fixture(scope="module", params=[*FAMILIES, "llama-llama3", "llama-linear", "llama-yarn", "qwen2-yarn"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Harness, Reference]:
    """Our decoder and transformers' on the same checkpoint."""
    folder = build(request.param, tmp_path_factory.mktemp("checkpoint"))
    return Harness(folder), Reference(folder)


def build(name: str, folder: Path) -> Path:
    family, _, rope = name.partition("-")
    return tiny_checkpoint(folder, family=cast(Family, family), rope=rope or "default")


def assert_equal(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.1, "a reference without contrast proves nothing"
    assert (ours - theirs).abs().max().item() <= 1e-4


@thorough
@given(texts=pieces, final=finals, way=st.sampled_from(WAYS))
def test_blocks_without_parents_equal_a_block_mask_over_global_positions(
    pair: tuple[Harness, Reference], texts: list[list[int]], final: list[int], way: str
) -> None:
    """(a) RoPE is relative: a block encoded alone and moved is the block that a 4-D mask isolates."""
    ours, theirs = pair
    blocks = [ours.block(text) for text in texts]
    assert_equal(ours.logits(blocks, final, way=way), theirs.block_mask(texts, final))


@thorough
@given(header=pieces, texts=pieces, final=finals, way=st.sampled_from(WAYS), data=st.data())
def test_blocks_behind_parents_equal_transformers_on_a_moved_cache(
    pair: tuple[Harness, Reference],
    header: list[list[int]],
    texts: list[list[int]],
    final: list[int],
    way: str,
    data: st.DataObject,
) -> None:
    """(b) A block's keys and values are those of transformers run on parents + block, moved to where the block lies."""
    ours, theirs = pair
    # The chain: header ← … ← header, each behind all before. Every other block hangs on some prefix of the chain.
    chain = [ours.block(header[0])]
    for text in header[1:]:
        chain.append(ours.block(text, *chain))
    depths = [data.draw(st.integers(0, len(chain))) for _ in texts]
    leaves = [ours.block(text, *chain[:depth]) for text, depth in zip(texts, depths, strict=True)]

    cached: list[list[LayerKV]] = []
    position = 0
    for index, text in enumerate([*header, *texts]):
        depth = index if index < len(header) else depths[index - len(header)]
        behind = [token_id for parent in header[:depth] for token_id in parent]
        kv = [(k[:, len(behind) :], v[:, len(behind) :]) for k, v in theirs.keys_and_values(behind + text)]
        cached.append(theirs.moved(kv, position - len(behind)))
        position += len(text)
    assert_equal(ours.logits([*chain, *leaves], final, way=way), theirs.on_cache(cached, final))


@thorough
@given(texts=pieces, final=finals, way=st.sampled_from(WAYS))
def test_parents_equal_to_everything_before_are_full_attention(
    pair: tuple[Harness, Reference], texts: list[list[int]], final: list[int], way: str
) -> None:
    """(c) One mechanism: a chain of parents, unmoved, is plain full attention with a prefix cache."""
    ours, theirs = pair
    blocks = [ours.block(texts[0])]
    for text in texts[1:]:
        blocks.append(ours.block(text, *blocks))
    whole = [token_id for text in [*texts, final] for token_id in text]
    assert_equal(ours.logits(blocks, final, way=way), theirs.full(whole, len(final)))


def test_a_long_prompt_without_blocks_is_full_attention(pair: tuple[Harness, Reference]) -> None:
    """The baseline of every benchmark, long enough for torch's fused kernel, is what transformers computes."""
    ours, theirs = pair
    prompt = [(7 * i * i + 3 * i) % 256 for i in range(200)]
    logits = ours.run(ours.assembled(Layout.of(())), prompt)
    assert_equal(logits, theirs.full(prompt, len(prompt)))


TEXTS = [[(11 * i + 5 * j * j) % 256 for j in range(5 + 3 * i)] for i in range(4)]
FINAL = [3, 141, 59, 26, 53]


@pytest.mark.parametrize("way", WAYS)
def test_every_order_of_blocks(pair: tuple[Harness, Reference], way: str) -> None:
    """(d) All 24 orders of four blocks, each encoded once, with moved keys and with turned queries."""
    ours, theirs = pair
    blocks = [ours.block(text) for text in TEXTS]
    ours.encode(blocks)
    for order in itertools.permutations(range(4)):
        assert ours.encode([blocks[i] for i in order]) == 0
        expected = theirs.block_mask([TEXTS[i] for i in order], FINAL)
        assert_equal(ours.logits([blocks[i] for i in order], FINAL, way=way), expected)


def test_swapping_a_block_in_a_running_conversation(pair: tuple[Harness, Reference]) -> None:
    """(e) After an edit only the new block is encoded; the conversation's keys move."""
    ours, theirs = pair
    header = ours.block([1, 2, 3, 4])
    first, second, edited = (ours.block(text, header) for text in ([5] * 7, [6, 7, 8], [9, 10, 11, 12, 13, 14]))
    question, answer, next_question = [20, 21, 22], [30, 31], [40, 41, 42, 43]

    ours.encode([header, first, second])
    context = ours.assembled(Layout.of([header, first, second]))
    ours.run(context, question)
    ours.run(context, answer)
    turn = ours.block([*question, *answer], header, first, second)
    with torch.inference_mode():
        ours.cache.put(turn, context.seal(turn))

    after = [header, edited, second, turn]
    assert ours.encode(after) == edited.num_tokens
    with torch.inference_mode():
        num_copied = context.place(Layout.of(after), ours.cache.get)
    assert num_copied == edited.num_tokens + second.num_tokens + turn.num_tokens  # the header did not move
    logits = ours.run(context, next_question)

    def behind_header(text: Sequence[int], position: int) -> list[LayerKV]:
        kv = theirs.keys_and_values([1, 2, 3, 4, *text])
        return theirs.moved([(k[:, 4:], v[:, 4:]) for k, v in kv], position - 4)

    old = [theirs.keys_and_values([1, 2, 3, 4]), behind_header([5] * 7, 4), behind_header([6, 7, 8], 11)]
    turn_kv = _extend(theirs, old, [*question, *answer])
    new = [old[0], behind_header(edited.token_ids, 4), behind_header([6, 7, 8], 10), theirs.moved(turn_kv, -1)]
    assert_equal(logits, theirs.on_cache(new, next_question))


def _extend(theirs: Reference, cached: list[list[LayerKV]], text: list[int]) -> list[LayerKV]:
    """Keys and values of `text` computed behind a cache."""
    from transformers import DynamicCache

    cache = DynamicCache()
    for layer in range(len(cached[0])):
        cache.update(
            torch.cat([piece[layer][0] for piece in cached], dim=1)[None],
            torch.cat([piece[layer][1] for piece in cached], dim=1)[None],
            layer,
        )
    with torch.inference_mode():
        theirs.model(torch.tensor([text]), past_key_values=cache)
    return [(layer.keys[0, :, -len(text) :], layer.values[0, :, -len(text) :]) for layer in cache.layers]


@pytest.mark.parametrize("way", WAYS)
def test_after_a_round_trip_through_disk(pair: tuple[Harness, Reference], tmp_path: Path, way: str) -> None:
    """(f) A second process that finds every block on disk computes the final block alone, to the same logits."""
    ours, theirs = pair
    owner = ours.identity.digest()
    blocks = [ours.block(text) for text in TEXTS]
    ours.encode(blocks)
    store = BlockStore(tmp_path / way, owner=owner, max_bytes=1 << 24)
    store.put((block.id, ours.cache.get(block.id)) for block in blocks)
    store.close()

    reopened = Harness.__new__(Harness)
    reopened.__dict__.update(ours.__dict__)
    store = BlockStore(tmp_path / way, owner=owner, max_bytes=1 << 24)
    reopened.cache = type(ours.cache)(ours.shape, torch.device("cpu"), max_bytes=1 << 30, store=store)
    assert reopened.encode(blocks) == 0
    assert_equal(reopened.logits(blocks, FINAL, way=way), theirs.block_mask(TEXTS, FINAL))
    store.close()


def test_two_npcs_share_one_copy_of_a_block(pair: tuple[Harness, Reference]) -> None:
    """The same block at two positions, for two NPCs, is one entry in memory and one tensor."""
    ours, theirs = pair
    shared, mine, yours = (ours.block(text) for text in ([9] * 6, [8] * 3, [7] * 5))
    before = ours.cache.stats()
    ours.encode([mine, shared])
    ours.encode([yours, shared])
    after = ours.cache.stats()
    assert after.num_bytes - before.num_bytes == (6 + 3 + 5) * ours.shape.num_bytes_per_token
    first, second = ours.segmented(Layout.of([mine, shared])), ours.segmented(Layout.of([yours, shared]))
    assert first.segments[1].kv.k.data_ptr() == second.segments[1].kv.k.data_ptr()
    assert first.segments[1].delta != second.segments[1].delta
    assert_equal(ours.run(first, FINAL), theirs.block_mask([[8] * 3, [9] * 6], FINAL))
    assert_equal(ours.run(second, FINAL), theirs.block_mask([[7] * 5, [9] * 6], FINAL))


def test_several_conversations_decode_in_one_batch(pair: tuple[Harness, Reference]) -> None:
    """Packed together or one by one, sequences of different lengths get the same logits."""
    from npc_engine.inference.attention import BatchAttention

    ours, _ = pair
    blocks = [ours.block(text) for text in TEXTS]
    ours.encode(blocks)
    layouts = [Layout.of(blocks[:1]), Layout.of(blocks[1:]), Layout.of(blocks)]
    finals = [[1, 2, 3], [4], [5, 6, 7, 8, 9]]
    single = [ours.run(ours.assembled(layout), final) for layout, final in zip(layouts, finals, strict=True)]
    with torch.inference_mode():
        attention = BatchAttention(ours.rope, [ours.assembled(x) for x in layouts], [len(f) for f in finals])
        hidden = ours.decoder.forward(torch.tensor([t for f in finals for t in f]), attention)
        packed = ours.decoder.logits(hidden).split([len(f) for f in finals])
    for one, other in zip(single, packed, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)
