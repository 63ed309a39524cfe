"""The stream of tuning batches: reproducible, the same however it is resumed."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch.utils.data import Dataset

from npc_engine.tuning.augment import augment, with_distractors
from npc_engine.tuning.rows import Batch, Pair, both_modes, pack
from npc_engine.tuning.samples import Sample, split_at_changes
from npc_engine.tuning.scene_prompt import scene_turns
from npc_engine.tuning.scene_variation import vary
from npc_engine.tuning.scenes import Scene
from npc_engine.tuning.segments import EpisodeBuilder

Line = Scene | Sample


@dataclass(frozen=True, slots=True)
class Variation:
    """How far scenes are changed each time they are seen, so that facts are read instead of learned by heart.

    `substitute`: the probability of other names, numbers and colours; `distract`: of blocks from other scenes, up to
    `max_blocks`; `reorder`: of turns in another order and blocks in the engine's other forms.
    """

    substitute: float = 0.9
    distract: float = 0.5
    max_blocks: int = 100
    reorder: float = 0.7


class BatchStream(Dataset[Batch]):
    """Batch *i* is made of the lines that follow those of batch *i - 1*, in a new order in every epoch.

    Made on demand, by any number of loader processes. `variation` None leaves scenes as they are.
    """

    def __init__(
        self,
        lines: Sequence[Line],
        builder: EpisodeBuilder,
        *,
        lines_per_batch: int,
        row_tokens: int,
        seed: int,
        variation: Variation | None,
        first: int = 0,
        stride: int = 1,
        num_batches: int = 1 << 30,
    ) -> None:
        self._lines = lines
        self._builder = builder
        self._lines_per_batch = lines_per_batch
        self._row_tokens = row_tokens
        self._seed = seed
        self._variation = variation
        self._first = first
        self._stride = stride
        self._num_batches = num_batches
        self._scenes = [line for line in lines if isinstance(line, Scene)]

    def __len__(self) -> int:
        return self._num_batches

    def __getitem__(self, index: int) -> Batch:
        start = (self._first + index * self._stride) * self._lines_per_batch
        pairs: list[Pair] = []
        for position in range(start, start + self._lines_per_batch):
            pairs += self._pairs(position)
        # A conversation that exceeds a row would cost more than it teaches; but a batch is never empty.
        fitting = [pair for pair in pairs if pair.num_tokens <= self._row_tokens]
        return both_modes(pack(fitting or [min(pairs, key=lambda pair: pair.num_tokens)], self._row_tokens))

    def _pairs(self, position: int) -> list[Pair]:
        epoch, offset = divmod(position, len(self._lines))
        order = random.Random(f"{self._seed} {epoch}").sample(range(len(self._lines)), len(self._lines))
        line = self._lines[order[offset]]
        rng = random.Random(f"{self._seed} {position}")
        return [pair_of(sample, self._builder) for sample in self._samples(line, rng)]

    def _samples(self, line: Line, rng: random.Random) -> list[Sample]:
        if isinstance(line, Sample):
            return [line]
        variation = self._variation
        if variation is None:
            return list(split_at_changes(scene_turns(line)))
        if rng.random() < variation.substitute:
            line = augment(line, rng)
        if rng.random() < variation.distract:
            line = self._among_others(line, rng, variation.max_blocks)
        turns = vary(line, rng) if rng.random() < variation.reorder else scene_turns(line)
        return list(split_at_changes(turns))

    def _among_others(self, scene: Scene, rng: random.Random, max_blocks: int) -> Scene:
        # Any order of magnitude as often as another. One block of each scene: the neighbours differ the most.
        num_added = round(math.exp(rng.uniform(0, math.log(max(1, max_blocks - len(scene.blocks))))))
        others = rng.sample(self._scenes, min(2 * num_added, len(self._scenes)))
        return with_distractors(scene, others, rng, num_added)


def pair_of(sample: Sample, builder: EpisodeBuilder) -> Pair:
    """The sample in both modes."""
    return Pair(builder.full(sample), builder.blocks(sample))


def pairs_of(lines: Sequence[Line], builder: EpisodeBuilder, on_line: Callable[[], None] = lambda: None) -> list[Pair]:
    """All samples of these lines as they are, for evaluation."""
    pairs: list[Pair] = []
    for line in lines:
        samples = [line] if isinstance(line, Sample) else split_at_changes(scene_turns(line))
        pairs += (pair_of(sample, builder) for sample in samples)
        on_line()
    return pairs
