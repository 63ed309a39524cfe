"""The evaluation: scenes in every mode, judged by their patterns and by the likelihood of reference answers."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from npc_engine.config import EngineConfig
from npc_engine.runtime import LoadedModel
from npc_engine.tuning.quality.figures import AnswerScore, ModeResult, TurnResult, difference
from npc_engine.tuning.quality.modes import Mode, parse_mode
from npc_engine.tuning.quality.talks import Stage
from npc_engine.tuning.scenes import Scene

_NUM_TTFTS = 24


@dataclass(frozen=True, slots=True)
class QualityResult:
    """All modes over the same scenes."""

    model: str
    adapter: str
    device: str
    dtype: str
    num_scenes: int
    modes: dict[str, ModeResult]

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "adapter": self.adapter,
            "device": self.device,
            "dtype": self.dtype,
            "num_scenes": self.num_scenes,
            "modes": {name: result.to_json() for name, result in self.modes.items()},
        }


def evaluate(
    loaded: LoadedModel,
    scenes: Sequence[Scene],
    modes: Sequence[Mode],
    config: EngineConfig,
    *,
    parallel: int,
    plays: bool = True,
    on_progress: Callable[[str, int, int], None] = lambda mode, done, total: None,
) -> QualityResult:
    """Play `scenes` in every mode, `parallel` conversations at a time; without `plays`, score reference answers only.

    `on_progress` gets mode, turns done, turns.
    """
    torch.set_num_threads(loaded.model.num_threads)
    chunks = [scenes[start : start + parallel] for start in range(0, len(scenes), parallel)]
    scores = _scores(loaded, chunks, modes, config, on_progress)
    results: dict[str, ModeResult] = {}
    for mode in modes:
        stage = Stage(loaded.model, mode, config)
        turns = _play(stage, chunks, partial(on_progress, mode.name)) if plays else ()
        ttfts = stage.ttfts_ms(scenes[:_NUM_TTFTS], is_full=mode.name == "full")
        stage.close()
        results[mode.name] = ModeResult(mode.name, turns, scores[mode.name], statistics.median(ttfts[2:] or ttfts))
    if plays and (full := results.get("full")) is not None:
        results = {
            name: replace(result, versus_full=difference(result.turns, full.turns)) if result is not full else result
            for name, result in results.items()
        }
    model = loaded.model
    dtype = str(model.decoder.dtype).removeprefix("torch.")
    return QualityResult(model.name, config.adapter, config.device, dtype, len(scenes), results)


def write_transcripts(path: Path, result: QualityResult) -> None:
    """Every turn of every mode, one JSON object a line."""
    with path.open("w", encoding="utf-8") as file:
        for name, mode in result.modes.items():
            for turn in mode.turns:
                line = {
                    "mode": name,
                    "scene": turn.scene,
                    "turn": turn.turn,
                    "kind": str(turn.kind),
                    "player": turn.player,
                    "reply": turn.reply,
                    "passed": turn.passed,
                }
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _play(
    stage: Stage, chunks: Iterable[Sequence[Scene]], on_progress: Callable[[int, int], None]
) -> tuple[TurnResult, ...]:
    chunks = list(chunks)
    total = sum(len(scene.turns) for chunk in chunks for scene in chunk)
    turns: list[TurnResult] = []
    for chunk in chunks:
        replies = stage.replies(chunk, lambda n: on_progress(len(turns) + n, total))
        for scene, spoken in zip(chunk, replies, strict=True):
            for index, (turn, reply) in enumerate(zip(scene.turns, spoken, strict=True)):
                turns.append(TurnResult(scene.id, index, turn.kind, turn.player, reply, turn.passes(reply)))
        on_progress(len(turns), total)
    return tuple(turns)


def _scores(
    loaded: LoadedModel,
    chunks: Sequence[Sequence[Scene]],
    modes: Sequence[Mode],
    config: EngineConfig,
    on_progress: Callable[[str, int, int], None],
) -> dict[str, tuple[AnswerScore, ...]]:
    """How likely each mode finds the reference answers, and how far its choices are from full attention's."""
    full = Stage(loaded.model, parse_mode("full"), config)
    stages = {mode.name: Stage(loaded.model, mode, config) for mode in modes if mode.name != "full"}
    scores: dict[str, list[AnswerScore]] = {mode.name: [] for mode in modes}
    for number, chunk in enumerate(chunks):
        on_progress("reference answers", number, len(chunks))
        expected = full.reference_logits(chunk)
        if "full" in scores:
            scores["full"] += (_score(logits, logits, ids) for logits, ids in expected)
        for name, stage in stages.items():
            pairs = zip(stage.reference_logits(chunk), expected, strict=True)
            scores[name] += (_score(logits, reference, ids) for (logits, ids), (reference, _) in pairs)
    for stage in (full, *stages.values()):
        stage.close()
    return {name: tuple(each) for name, each in scores.items()}


def _score(logits: Tensor, full: Tensor, token_ids: Tensor) -> AnswerScore:
    log_p, log_full = logits.log_softmax(-1), full.log_softmax(-1)
    nll = -log_p.gather(1, token_ids[:, None]).sum()
    kl = (log_full.exp() * (log_full - log_p)).sum()
    return AnswerScore(float(nll), float(kl), len(token_ids))
