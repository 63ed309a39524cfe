"""From settings to a loaded model and an inference engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from npc_engine.blocks import BlockDamage, BlockStore
from npc_engine.config import EngineConfig
from npc_engine.inference import InferenceEngine, Model, find_adapter, load_model, open_memory, resolve


class Progress(NamedTuple):
    """`stage` is a line for people; `done` of `total` are bytes while fetching, layers while loading, else 0 of 0."""

    stage: str
    done: int = 0
    total: int = 0


LoadProgress = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model and how large its checkpoint is, in bytes."""

    model: Model
    num_bytes: int


def load(config: EngineConfig, on_progress: LoadProgress | None = None) -> LoadedModel:
    """Resolve and load the model of `config`; fetches and converts it the first time. Takes seconds: not for an event
    loop. Raises :class:`~npc_engine.errors.ModelError`."""
    say = on_progress or (lambda progress: None)
    checkpoint = resolve(
        config.model,
        config.cache_dir,
        on_progress=lambda done, total: say(Progress(f"fetching {config.model}", done, total)),
        on_stage=lambda line: say(Progress(line)),
    )
    adapter = find_adapter(config.adapter, checkpoint.name)
    model = load_model(
        checkpoint,
        adapter=adapter,
        device=config.device,
        dtype=config.dtype,
        num_threads=config.num_threads,
        on_progress=lambda done, total: say(Progress(f"loading {checkpoint.name}", done, total)),
    )
    return LoadedModel(model, checkpoint.num_bytes)


def create_engine(
    loaded: LoadedModel, config: EngineConfig, on_damage: Callable[[BlockDamage], None]
) -> InferenceEngine:
    """The inference engine with its block tiers. Call it on the thread that will use it."""
    model = loaded.model
    store = BlockStore(
        config.data_dir / "blocks",
        owner=model.identity.digest(),
        max_bytes=config.max_store_size,
        on_damage=on_damage,
    )
    cache, kind = open_memory(
        model,
        config.attention,
        max_block_memory=config.max_block_memory,
        max_context_memory=config.max_context_memory,
        store=store,
    )
    engine = InferenceEngine(model, cache, max_context_memory=config.max_context_memory, kind=kind)
    engine.prepare()
    return engine
