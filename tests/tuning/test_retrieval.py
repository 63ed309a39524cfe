"""The loss that says where answers stand: the right value, and it teaches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from npc_engine.inference import ChatTemplate, Tokenizer
from npc_engine.tuning.retrieval import Retrieval
from npc_engine.tuning.rows import Batch, Pair, both_modes
from npc_engine.tuning.samples import Sample, SampleTurn
from npc_engine.tuning.scene_prompt import scene_turns
from npc_engine.tuning.scene_variation import vary
from npc_engine.tuning.scenes import Scene, load_scenes
from npc_engine.tuning.segments import EpisodeBuilder
from tests.inference.builders import tiny_checkpoint

SCENES = Path(__file__).parents[2] / "data/scenes/training/bb.jsonl"
BLOCKS = ("The mill has red sails.\n", "Wolves came last night.\n", "The inn sells soup.\n")
TURNS = (
    SampleTurn("What came?", "Wolves, traveller, and a bear.", BLOCKS, (BLOCKS[1],)),
    SampleTurn("Good day.", "Good day.", BLOCKS),
    SampleTurn("Soup and sails?", "Red sails, and soup.", BLOCKS, (BLOCKS[0], BLOCKS[2])),
)


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> EpisodeBuilder:
    folder = tiny_checkpoint(tmp_path_factory.mktemp("model"), "smollm", max_position_embeddings=1024)
    tokenizer = Tokenizer(folder)
    return EpisodeBuilder(tokenizer, ChatTemplate.load(folder, tokenizer))


def batch_of(builder: EpisodeBuilder, *samples: Sample) -> Batch:
    return both_modes([[Pair(builder.full(sample), builder.blocks(sample)) for sample in samples]])


def layer(index: int) -> nn.Module:
    module = nn.Module()
    module.layer_idx = index  # type: ignore[assignment]
    module.config = SimpleNamespace(num_hidden_layers=6)  # type: ignore[assignment]
    return module


def test_the_loss_is_the_attention_that_misses(builder: EpisodeBuilder) -> None:
    """Counted by hand: of the keys of blocks that a lookup sees, the share of those of its sources."""
    batch = batch_of(builder, Sample(TURNS, 3), Sample(TURNS[:1], 1))
    retrieval = Retrieval.of(batch)
    assert retrieval is not None
    rows, num_tokens = batch.token_ids.shape
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(rows, 2, num_tokens, 8, generator=generator)
    keys = torch.randn(rows, batch.slot_tokens.shape[1], 1, 8, generator=generator)
    retrieval.watch(layer(4), queries, keys, 0.5)

    visible = batch.mask()
    expected = []
    for row in range(rows):
        for i, column in enumerate(batch.lookup_columns[row].tolist()):
            sources = batch.lookup_sources[row, i].nonzero().flatten().tolist()
            if not sources:
                continue
            shares = []
            for head in range(2):
                total = found = 0.0
                for slot, token in enumerate(batch.slot_tokens[row].tolist()):
                    block = int(batch.token_blocks[row, token])
                    if block and visible[row, column, slot]:
                        weight = float((queries[row, head, column] @ keys[row, slot, 0] * 0.5).exp())
                        total += weight
                        found += weight * (block in sources)
                shares.append(found / total)
            expected.append(-torch.tensor(max(shares)).log())  # one head of two is asked
    assert len(expected) == 2 * 3 * 3  # modes, turns with sources, tokens
    assert float(retrieval.loss()) == pytest.approx(float(torch.stack(expected).mean()), rel=1e-5)


def test_both_modes_seek_the_same_tokens(builder: EpisodeBuilder) -> None:
    """A block is the same block whether it is encoded alone or behind all before it."""
    batch = batch_of(builder, Sample(TURNS, 3))
    full, blocks = (
        [
            {
                tuple(batch.token_ids[row][batch.token_blocks[row] == block].tolist())
                for block in batch.lookup_sources[row, i].nonzero().flatten().tolist()
            }
            for i in range(batch.lookup_columns.shape[1])
        ]
        for row in range(2)
    )
    assert full == blocks
    assert [len(sources) for sources in full] == [1] * 3 + [2] * 3


@pytest.mark.parametrize("num_layers", [2, 3, 4, 6, 7, 24, 30])
def test_every_depth_is_watched(builder: EpisodeBuilder, num_layers: int) -> None:
    """Some layer in the middle, whatever the model."""
    retrieval = Retrieval.of(batch_of(builder, Sample(TURNS, 3)))
    assert retrieval is not None
    rows, num_slots = len(retrieval._columns), retrieval._among.shape[-1]
    num_tokens = int(retrieval._columns.max()) + 1
    for index in range(num_layers):
        module = layer(index)
        module.config = SimpleNamespace(num_hidden_layers=num_layers)  # type: ignore[assignment]
        retrieval.watch(module, torch.zeros(rows, 2, num_tokens, 8), torch.zeros(rows, num_slots, 1, 8), 1.0)
    assert torch.isfinite(retrieval.loss())


def test_layers_at_the_ends_are_left_alone(builder: EpisodeBuilder) -> None:
    """They read words and write the reply."""
    retrieval = Retrieval.of(batch_of(builder, Sample(TURNS, 3)))
    assert retrieval is not None
    for index in (0, 1, 5):
        retrieval.watch(layer(index), torch.zeros(()), torch.zeros(()), 1.0)  # looks at nothing
    assert Retrieval.of(batch_of(builder, Sample((replace(TURNS[0], sources=()),), 1))) is None


@pytest.mark.parametrize("seed", range(20))
def test_sources_are_among_the_blocks_however_a_scene_is_told(seed: int) -> None:
    """Dressed, merged and shuffled, a source holds what the turn needs."""
    import random

    scenes: tuple[Scene, ...] = load_scenes(SCENES)[:4]
    for scene in scenes:
        needs = {turn.player: len(turn.needs) for turn in scene.turns}
        for turn in (*vary(scene, random.Random(seed)), *scene_turns(scene)):
            assert set(turn.sources) <= set(turn.blocks)
            assert bool(turn.sources) == bool(needs[turn.player])
            assert len(turn.sources) <= needs[turn.player]
