"""What may be done with cached blocks beside serving them: re-linking, weighting, other positions."""

from __future__ import annotations

import pytest
import torch

from npc_engine.blocks import Block, Layout
from npc_engine.inference.attention import ContextWeighting
from npc_engine.inference.context import AssembledContext
from npc_engine.inference.relinking import RelinkExtent, Relinking
from tests.inference.builders import tiny_checkpoint
from tests.inference.harness import CPU, Harness

HEADER, A, B, FINAL = [1, 5, 6, 7], [11, 12, 13, 14, 15], [21, 22, 23], [31, 32, 33]


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Harness:
    return Harness(tiny_checkpoint(tmp_path_factory.mktemp("tiny"), "llama"))


def blocks_of(ours: Harness, *texts: list[int]) -> list[Block]:
    header = ours.block(HEADER)
    return [header, *(ours.block(text, header) for text in texts)]


def relink(ours: Harness, context: AssembledContext, num_tokens: int = 0, share: float = 0.0) -> None:
    with torch.inference_mode():
        extent = RelinkExtent(num_tokens=num_tokens, share=share)
        job = Relinking(ours.decoder, ours.rope, context, extent)
        while not job.is_done:
            job.advance()
        assert job.commit()


def test_relinking_every_token_is_full_attention(ours: Harness) -> None:
    """And re-linking some of them lies between."""
    blocks = blocks_of(ours, A, B)
    ours.encode(blocks)
    full = ours.run(ours.assembled(Layout.of([])), [*HEADER, *A, *B, *FINAL])[-len(FINAL) :]
    distances = []
    for num_tokens in (0, 2, 9):
        context = ours.assembled(Layout.of(blocks))
        relink(ours, context, num_tokens)
        distances.append(float((ours.run(context, FINAL) - full).abs().max()))
    assert distances[0] > distances[1] > distances[2]
    assert distances[2] < 1e-4


def test_relinking_what_deviates_most(ours: Harness) -> None:
    """Of the second layer's keys, against those of full attention; all of it is full attention."""
    blocks = blocks_of(ours, A, B, [41, 42, 43, 44, 45, 46])
    ours.encode(blocks)
    tokens = [*HEADER, *A, *B, 41, 42, 43, 44, 45, 46]
    whole = ours.assembled(Layout.of([]))
    expected = ours.run(whole, [*tokens, *FINAL])[-len(FINAL) :]
    context = ours.assembled(Layout.of(blocks))
    n = context.num_tokens
    deviation = (whole.rows_of(1)[0][:, :n] - context.rows_of(1)[0]).square().sum(dim=(0, 2))
    before = context.rows_of(1)[0].clone()
    relink(ours, context, share=0.3)
    changed = (context.rows_of(1)[0] - before).abs().sum(dim=(0, 2)).nonzero().flatten().tolist()
    assert changed == sorted(deviation.topk(round(0.3 * (n - len(HEADER)))).indices.tolist())

    context = ours.assembled(Layout.of(blocks))
    relink(ours, context, share=1.0)
    assert (ours.run(context, FINAL) - expected).abs().max() < 1e-4


def test_behind_a_change_relinking_is_undone(ours: Harness) -> None:
    """Nothing of the old block stays in the heads of those behind it, and what lies in front keeps its links."""
    before, after = blocks_of(ours, A, B, [41, 42]), blocks_of(ours, A, [24, 25, 26], [41, 42])
    ours.encode([*before, *after])
    context = ours.assembled(Layout.of(before))
    relink(ours, context, 2)
    with torch.inference_mode():
        assert context.place(Layout.of(after), ours.cache.get) == 5  # the new block and the one behind it
    assert context.num_relinked == 2  # header and A
    relink(ours, context, 2)
    fresh = ours.assembled(Layout.of(after))
    relink(ours, fresh, 2)
    assert torch.allclose(ours.run(context, FINAL), ours.run(fresh, FINAL), atol=1e-5)


def test_a_relinking_is_void_once_the_context_has_changed(ours: Harness) -> None:
    """It never writes into another layout."""
    before, after = blocks_of(ours, A, B), blocks_of(ours, B, A)
    ours.encode([*before, *after])
    context = ours.assembled(Layout.of(before))
    with torch.inference_mode():
        job = Relinking(ours.decoder, ours.rope, context, RelinkExtent(num_tokens=2))
        job.advance()
        context.place(Layout.of(after), ours.cache.get)
        while not job.is_done:
            job.advance()
        assert not job.commit()
    assert torch.allclose(ours.run(context, FINAL), ours.logits(after, FINAL))


def test_weighting_by_one_changes_nothing(ours: Harness) -> None:
    """Another temperature does."""
    blocks = blocks_of(ours, A, B)
    expected = ours.logits(blocks, FINAL)
    found = []
    for weighting in (ContextWeighting(1.0, 1.0), ContextWeighting(0.7, 0.9)):
        context = AssembledContext(ours.shape, ours.rope.inv_freq, CPU, weighting)
        with torch.inference_mode():
            context.place(Layout.of(blocks), ours.cache.get)
        found.append(ours.run(context, FINAL))
    assert torch.allclose(found[0], expected, atol=1e-4)
    assert not torch.allclose(found[1], expected, atol=1e-2)


def test_blocks_at_other_positions(ours: Harness) -> None:
    """Positions without gaps are the layout itself; a turn sealed behind a gap comes back to where it was."""
    blocks = blocks_of(ours, A, B)
    ours.encode(blocks)
    plain = Layout.of(blocks)
    same = Layout.at(blocks, [p.position for p in plain.placements], plain.end)
    assert same == plain
    apart = Layout.at(blocks, [0, 10, 30], 40)
    context = ours.assembled(apart)
    with torch.inference_mode():
        first = ours.run(context, FINAL)
        turn = Block.behind(ours.identity, blocks, FINAL)
        ours.cache.put(turn, context.seal(turn))
        rebuilt = ours.assembled(Layout.at([*blocks, turn], [0, 10, 30, 40], 40 + len(FINAL)))
    assert context.position == rebuilt.position == 43
    assert torch.allclose(ours.run(context, [51]), ours.run(rebuilt, [51]), atol=1e-4)
    assert not torch.allclose(first, ours.logits(blocks, FINAL), atol=1e-3)
