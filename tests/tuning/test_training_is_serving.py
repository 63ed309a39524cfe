"""What is trained is what is served: the same logits from the training graph and from the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from npc_engine.blocks import BlockCache
from npc_engine.config import SamplingParams
from npc_engine.dialogue.render import BlockText
from npc_engine.inference import FinishedOutput, GenerationRequest, InferenceEngine, Model, load_model, resolve
from npc_engine.runtime.linking import Linking, everything_before, header_only
from npc_engine.runtime.prompt import Prompter, Transcript
from npc_engine.tuning import block_attention, objective
from npc_engine.tuning.objective import TargetLogits
from npc_engine.tuning.rows import collate
from npc_engine.tuning.samples import Sample, SampleTurn, split_at_changes
from npc_engine.tuning.segments import Episode, EpisodeBuilder
from npc_engine.world import Kind, entity_id
from tests.inference.builders import tiny_checkpoint

OLD = ("The mill stands by the road.\n", "You are Ann, the miller.\n", "Wolves came last night.\n")
NEW = (
    "The mill stands by the road.\n",
    "You are Ann, the miller, and tired of all guests.\n",
    "Wolves came last night.\n",
)
TALK = (
    SampleTurn("What came?", "Wolves, traveller.", OLD),
    SampleTurn("Where is the mill?", "By the road.", OLD),
    SampleTurn("Who are you?", "Ann. I'm tired.", NEW),
    SampleTurn("And the guests?", "I'd rather not.", NEW),
)


@pytest.fixture(scope="module", params=["llama", "qwen2", "qwen3", "mistral", "yarn"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    name = request.param
    family, rope = ("llama", "yarn") if name == "yarn" else (name, "default")
    return tiny_checkpoint(tmp_path_factory.mktemp(name), family, rope, max_position_embeddings=1024)


def served(model: Model, turns: tuple[SampleTurn, ...], linking: Linking) -> list[Tensor]:
    """Logits of every reply, its end included, from the engine: a conversation whose replies are forced."""
    cache = BlockCache(model.kv_shape, torch.device("cpu"), max_bytes=1 << 28, store=None)
    engine = InferenceEngine(model, cache, max_context_memory=1 << 26)
    prompter = Prompter(
        model.identity,
        model.tokenizer,
        model.template,
        max_tokens=1024,
        max_reply_tokens=60,
        max_utterance_tokens=60,
        linking=linking,
    )
    transcript = Transcript()
    logits = []
    stop = model.template.stop_id
    for i, turn in enumerate(turns):
        texts = [BlockText(entity_id(Kind.LORE, str(j)), "text", text) for j, text in enumerate(turn.blocks)]
        prompt = prompter.assemble(texts, transcript, turn.player)
        engine.submit(
            GenerationRequest(
                request_id=i,
                conversation="talk",
                blocks=prompt.blocks,
                turns=prompt.turns,
                final_token_ids=prompt.final_token_ids,
                sampling=SamplingParams(),
                seed=0,
                stop_ids=model.template.stop_ids,
                forced_token_ids=(*model.tokenizer.encode_text(turn.reply), stop),
            )
        )
        outputs = []
        while engine.has_work:
            outputs += engine.step()
        (finished,) = (output for output in outputs if isinstance(output, FinishedOutput))
        assert finished.turn is not None
        assert finished.forced_logits is not None
        logits.append(finished.forced_logits)
        transcript = Transcript((*prompt.turns[: len(prompt.turns) - finished.num_folded], finished.turn))
    return logits


def trained(folder: Path, model: Model, episodes: list[Episode]) -> Tensor:
    """Logits of all targets from the training graph, several episodes packed into one row, and another row beside."""
    transformer = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=block_attention.NAME
    )
    graph = TargetLogits(transformer, model.rope.inv_freq)
    with torch.no_grad():
        return graph(collate([episodes, episodes[:1]])).logits


@pytest.mark.parametrize("linking", [header_only, everything_before], ids=["blocks", "full"])
def test_training_logits_are_serving_logits(folder: Path, tmp_path: Path, linking: Linking) -> None:
    """In both modes, over a conversation in whose middle a block changes its length."""
    model = load_model(resolve(str(folder), tmp_path), device="cpu", dtype="float32")
    expected = torch.cat(served(model, TALK, linking))
    builder = EpisodeBuilder(model.tokenizer, model.template)
    build = builder.blocks if linking is header_only else builder.full
    logits = trained(folder, model, [build(sample) for sample in split_at_changes(TALK)])
    assert torch.isfinite(logits).all()
    difference = (logits[: len(expected)] - expected).abs().max()
    assert difference < 1e-4 * expected.abs().max()


def test_the_modes_differ(folder: Path, tmp_path: Path) -> None:
    """Otherwise the test above proves nothing."""
    model = load_model(resolve(str(folder), tmp_path), device="cpu", dtype="float32")
    builder = EpisodeBuilder(model.tokenizer, model.template)
    sample = Sample(TALK[:2], 2)
    full, blocks = (trained(folder, model, [build(sample)]) for build in (builder.full, builder.blocks))
    assert (full - blocks).abs().max() > 0.01


def test_sequences_of_their_own_length_are_the_mask(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU's kernel is given (a sequence per segment, no mask) says the same as the mask."""

    def loop(q: Tensor, k: Tensor, v: Tensor, q_ends: Tensor, k_ends: Tensor, *_: int, **options: Any) -> Tensor:
        pieces = []
        for i in range(len(q_ends) - 1):
            queries, rows = q[q_ends[i] : q_ends[i + 1]], slice(int(k_ends[i]), int(k_ends[i + 1]))
            keys, values = (x[rows].repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
            mask = torch.ones(len(queries), len(keys), dtype=torch.bool).tril(len(keys) - len(queries))
            scores = torch.einsum("qhd,khd->hqk", queries, keys) * options["scale"]
            pieces.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(~mask, -torch.inf).softmax(-1), values))
        return torch.cat(pieces)

    model = load_model(resolve(str(folder), tmp_path), device="cpu", dtype="float32")
    builder = EpisodeBuilder(model.tokenizer, model.template)
    episodes = [builder.blocks(sample) for sample in split_at_changes(TALK)]
    expected = trained(folder, model, episodes)
    monkeypatch.setattr(block_attention, "varlen_attn", loop)
    monkeypatch.setattr(objective, "takes_sequences", lambda device, dtype: True)
    assert (trained(folder, model, episodes) - expected).abs().max() < 1e-4 * expected.abs().max()
