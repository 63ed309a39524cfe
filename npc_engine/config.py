"""What a user may set, with its defaults. Nothing here changes after construction."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import platformdirs

DEFAULT_MODEL = "smollm2-135m-instruct"


def default_data_dir() -> Path:
    """Where saves and blocks live: ``$NPC_ENGINE_HOME``, or the platform's user data directory."""
    override = os.environ.get("NPC_ENGINE_HOME")
    return Path(override) if override else Path(platformdirs.user_data_dir("npc-engine", appauthor=False))


def default_cache_dir() -> Path:
    """Where models live: ``$NPC_ENGINE_HOME/cache``, or the platform's user cache directory."""
    override = os.environ.get("NPC_ENGINE_HOME")
    return Path(override) / "cache" if override else Path(platformdirs.user_cache_dir("npc-engine", appauthor=False))


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How reply tokens are chosen.

    `temperature` 0 is greedy. `top_p`, `min_p` keep the likeliest tokens (nucleus; share of the best token's
    probability). `repetition_penalty` divides the logits of tokens that this reply already used. `seed` None
    derives one from the session's seed.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int = 96
    seed: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Settings of one engine.

    Sizes are in bytes, times in seconds. `model` is a folder, a GGUF file or a hub id; `dtype` None lets the
    device decide (bfloat16 where the processor has it in hardware, else float32).
    """

    model: str = DEFAULT_MODEL
    device: str = "cpu"
    dtype: str | None = None
    num_threads: int | None = None
    data_dir: Path = field(default_factory=default_data_dir)
    cache_dir: Path = field(default_factory=default_cache_dir)
    max_block_memory: int = 2 << 30
    max_context_memory: int = 1 << 29
    max_store_size: int = 16 << 30
    ticks_per_s: float = 20.0
    max_utterance_tokens: int = 256
    max_context_tokens: int = 4096
    sampling: SamplingParams = SamplingParams()
    seed: int = 0
