"""From turns to figures."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from npc_engine.tuning.scenes import Kind

_Z: float = 1.96  # 95 %


@dataclass(frozen=True, slots=True)
class TurnResult:
    """One turn of one scene in one mode. `reply` is what the model said, judged by `passed`."""

    scene: str
    turn: int
    kind: Kind
    player: str
    reply: str
    passed: bool


@dataclass(frozen=True, slots=True)
class AnswerScore:
    """A reference answer, fed back token by token: sums over its `num_tokens` tokens, in nats."""

    nll: float
    kl_to_full: float
    num_tokens: int


class Share(NamedTuple):
    """`num_passed` of `num_turns`, with Wilson's 95 % interval."""

    num_passed: int
    num_turns: int

    @property
    def accuracy(self) -> float:
        return self.num_passed / self.num_turns if self.num_turns else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        n = self.num_turns
        if not n:
            return (0.0, 1.0)
        p, z2 = self.accuracy, _Z * _Z
        center = (p + z2 / (2 * n)) / (1 + z2 / n)
        half = _Z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
        return (max(0.0, center - half), min(1.0, center + half))


class Difference(NamedTuple):
    """Mean of paired differences, and its 95 % interval from resampling scenes."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class ModeResult:
    """Everything that was measured of one mode. `ttft_ms` is a median; `versus_full` is None without mode full."""

    mode: str
    turns: tuple[TurnResult, ...]
    scores: tuple[AnswerScore, ...]
    ttft_ms: float
    versus_full: Difference | None = None

    @property
    def overall(self) -> Share:
        return share(self.turns)

    def by_kind(self) -> dict[Kind, Share]:
        kinds = [kind for kind in Kind if any(turn.kind is kind for turn in self.turns)]
        return {kind: share(turn for turn in self.turns if turn.kind is kind) for kind in kinds}

    @property
    def facts(self) -> Share:
        """World, location, sheet and memory together."""
        plain = {Kind.WORLD, Kind.LOCATION, Kind.SHEET, Kind.MEMORY}
        return share(turn for turn in self.turns if turn.kind in plain)

    @property
    def answer_nll(self) -> float:
        """Per token of the reference answers, in nats."""
        return self._per_token(score.nll for score in self.scores)

    @property
    def kl_to_full(self) -> float:
        """Per token of the reference answers, in nats."""
        return self._per_token(score.kl_to_full for score in self.scores)

    def _per_token(self, sums: Iterable[float]) -> float:
        """NaN where no scene has a reference answer."""
        num_tokens = sum(score.num_tokens for score in self.scores)
        return math.fsum(sums) / num_tokens if num_tokens else math.nan

    def to_json(self) -> dict[str, Any]:
        """The mode's part of the benchmark's JSON."""
        difference = self.versus_full
        return {
            **_share_json(self.overall),
            "facts": _share_json(self.facts),
            "by_kind": {str(kind): _share_json(each) for kind, each in self.by_kind().items()},
            "answer_nll": round(self.answer_nll, 4) if self.scores else None,
            "kl_to_full": round(self.kl_to_full, 4) if self.scores else None,
            "ttft_ms": round(self.ttft_ms, 1),
            "versus_full": [round(value, 4) for value in difference] if difference is not None else None,
        }


def share(turns: Iterable[TurnResult]) -> Share:
    passed = [turn.passed for turn in turns]
    return Share(sum(passed), len(passed))


def difference(turns: Sequence[TurnResult], baseline: Sequence[TurnResult], *, rounds: int = 2000) -> Difference:
    """How much better `turns` are than `baseline`, turn by turn; scenes are resampled, since their turns belong
    together."""
    by_scene: dict[str, list[int]] = {}
    for turn, other in zip(turns, baseline, strict=True):
        by_scene.setdefault(turn.scene, []).append(turn.passed - other.passed)
    scenes = list(by_scene.values())
    rng = random.Random(0)
    means = sorted(_mean(rng.choices(scenes, k=len(scenes))) for _ in range(rounds))
    return Difference(_mean(scenes), means[int(0.025 * rounds)], means[int(0.975 * rounds)])


def _mean(scenes: Sequence[Sequence[int]]) -> float:
    return statistics.fmean(value for scene in scenes for value in scene)


def _share_json(each: Share) -> dict[str, Any]:
    accuracy = round(each.accuracy, 4) if each.num_turns else None
    return {"accuracy": accuracy, "num_turns": each.num_turns, "interval": [round(value, 4) for value in each.interval]}
