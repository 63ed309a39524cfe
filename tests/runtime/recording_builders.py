"""A recorded session over a tiny world and a tiny random model."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from npc_engine.blocks import Block, BlockCache, BlockKV
from npc_engine.config import EngineConfig, SamplingParams
from npc_engine.errors import PatchError
from npc_engine.inference import InferenceEngine, Model, load_model, resolve
from npc_engine.runtime import LoadedModel, NpcEngine
from npc_engine.runtime.recorder import Recorder
from npc_engine.world import load_world
from tests.inference.builders import tiny_checkpoint

_WORLD = """\
format: 1
id: mill
title: The Mill
setting: A mill stands on a river.
start:
  day: 3
  time: "19:40"
  player:
    name: Rowan
    description: Rowan is a stranger.
    place: yard
places:
  yard:
    name: the yard
    description: It is muddy.
    conditions:
      wheel: The wheel stands still.
"""
_CHARACTER = """\
name: {name}
role: {role}
place: yard
sheet:
  identity: You are forty.
  personality: You are stern.
  goals: You want to sleep.
"""


def write_world(folder: Path, setting: str = "A mill stands on a river.") -> Path:
    """A world of two NPCs in `folder`/mill."""
    world = folder / "mill"
    (world / "characters").mkdir(parents=True)
    (world / "world.yaml").write_text(_WORLD.replace("A mill stands on a river.", setting))
    (world / "characters" / "anna.yaml").write_text(_CHARACTER.format(name="Anna Reed", role="the miller"))
    (world / "characters" / "ben.yaml").write_text(_CHARACTER.format(name="Ben", role="a carter"))
    return world


def tiny_model(folder: Path, *, seed: int = 0, dtype: str = "float32") -> Model:
    """A random model; equal seeds give equal fingerprints."""
    checkpoint = folder / f"checkpoint-{seed}"
    if not checkpoint.exists():
        tiny_checkpoint(folder, "llama", seed=seed, max_position_embeddings=4096).rename(checkpoint)
    return load_model(resolve(str(checkpoint), folder / "cache"), device="cpu", dtype=dtype, num_threads=1)


def with_stop_id(model: Model, token_id: int) -> Model:
    """The same model, ending its turn with `token_id`: a random one hardly ever says its own stop token."""
    return replace(model, template=replace(model.template, stop_ids=frozenset({token_id})))


def config(folder: Path, **settings: Any) -> EngineConfig:
    sampling = settings.pop("sampling", SamplingParams(max_tokens=12))
    return EngineConfig(data_dir=folder / "data", cache_dir=folder / "cache", seed=7, sampling=sampling, **settings)


def record(
    folder: Path,
    path: Path,
    play: Callable[[NpcEngine], Any],
    *,
    model: Model | None = None,
    create: Any = None,
    settings: dict[str, Any] | None = None,
) -> Path:
    """Record what `play` does with an engine over ``folder/mill``; returns `path`."""

    async def main() -> None:
        world = load_world(folder / "mill")
        more = {} if create is None else {"create": create}
        with Recorder(path) as recorder:
            engine = NpcEngine(
                world,
                LoadedModel(model or tiny_model(folder), 0),
                config(folder, **settings or {}),
                observer=recorder,
                **more,
            )
            await engine.start()
            async with engine:
                await play(engine)

    asyncio.run(main())
    return path


async def settled(engine: NpcEngine) -> None:
    """Wait until a tick has taken in what was said, so that what comes next has a tick of its own."""
    while engine._inbox:  # noqa: ASYNC110  nothing tells when
        await asyncio.sleep(0)


async def conversation(engine: NpcEngine) -> None:
    """Everything a recording can hold: changes, refusals, queued and simultaneous utterances, a cancelled reply."""
    await engine.say("anna", "Who is there?").result()
    await settled(engine)
    await engine.patch([{"op": "replace", "path": "/places/yard/conditions/wheel", "value": "The wheel turns."}])
    await asyncio.gather(
        *(engine.say(npc, "What do you see? \N{WATER WAVE}").result() for npc in ("anna", "ben", "anna"))
    )
    await settled(engine)
    with contextlib.suppress(PatchError):
        await engine.patch([{"op": "replace", "path": "/places/cellar/name", "value": "the cellar"}])
    stream = engine.say("anna", "Tell me all.", sampling=SamplingParams(max_tokens=2000))
    async for _ in stream:
        stream.cancel()
    await settled(engine)
    await engine.advance(90)
    await engine.say("anna", "And now?").result()
    await engine.say("ben", "Guess!", sampling=SamplingParams(temperature=1.0, max_tokens=6, seed=5)).result()


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_lines(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


class ForgetfulCache(BlockCache):
    """Never keeps a turn, as if each had been evicted. A turn is what begins with the chat template's markup."""

    markup: frozenset[int] = frozenset()

    def put(self, block: Block, kv: BlockKV) -> None:
        if not block.parents or block.token_ids[0] not in self.markup:
            super().put(block, kv)


def forgetful_engine(loaded: LoadedModel, config: EngineConfig, on_damage: Any) -> InferenceEngine:
    model = loaded.model
    cache = ForgetfulCache(model.kv_shape, model.decoder.device, max_bytes=1 << 30, store=None)
    cache.markup = frozenset({model.template.user_open[0], model.template.next_user_open[0]})
    return InferenceEngine(model, cache, max_context_memory=0)
