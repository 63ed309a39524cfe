"""What a user may set, with its defaults. Nothing here changes after construction."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import platformdirs

from npc_engine.errors import ConfigError

DEFAULT_MODEL = "smollm2-135m-instruct"
FIDELITIES = ("auto", "fast", "balanced", "exact")
ATTENTIONS = ("auto", "buffers", "sdpa", "triton")


def default_data_dir() -> Path:
    """Where saves and blocks live: ``$NPC_ENGINE_HOME``, or the platform's user data directory."""
    override = os.environ.get("NPC_ENGINE_HOME")
    return Path(override) if override else Path(platformdirs.user_data_dir("npc-engine", appauthor=False))


def default_cache_dir() -> Path:
    """Where models live: ``$NPC_ENGINE_HOME/cache``, or the platform's user cache directory."""
    override = os.environ.get("NPC_ENGINE_HOME")
    return Path(override) / "cache" if override else Path(platformdirs.user_cache_dir("npc-engine", appauthor=False))


def _check(name: str, value: object, is_good: bool, expected: str) -> None:
    if not is_good:  # NaN fails every comparison, so it ends here, too
        raise ConfigError(f"{name}: {value!r} is out of range; it must be {expected}")


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
    repetition_penalty: float = 1.1
    max_tokens: int = 80
    seed: int | None = None

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, self.temperature >= 0, "at least 0")
        _check("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1")
        _check("min_p", self.min_p, 0 <= self.min_p <= 1, "between 0 and 1")
        _check("repetition_penalty", self.repetition_penalty, self.repetition_penalty > 0, "above 0")
        _check("max_tokens", self.max_tokens, self.max_tokens >= 1, "at least 1")
        _check("seed", self.seed, self.seed is None or 0 <= self.seed < 1 << 63, "between 0 and 2**63 - 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Settings of one engine.

    Sizes are in bytes, times in seconds. `model` is a folder, a GGUF file or a hub id; `adapter` is a folder,
    ``default`` (what comes with the model, if anything does) or ``none``; `dtype` None lets the device decide (bfloat16
    where the processor has it in hardware, else float32). `fidelity` says how close to full attention prompts are
    (:mod:`npc_engine.runtime.fidelity`); ``auto`` is ``fast`` for a model with an adapter, ``balanced`` without.
    `attention` says how conversations keep their contexts (:func:`npc_engine.inference.context_kind.open_memory`).
    """

    model: str = DEFAULT_MODEL
    adapter: str = "default"
    fidelity: str = "auto"
    attention: str = "auto"
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

    def __post_init__(self) -> None:
        _check("ticks_per_s", self.ticks_per_s, 0 < self.ticks_per_s <= 1000, "above 0 and at most 1000")
        for name in ("max_block_memory", "max_context_memory", "max_store_size", "max_utterance_tokens"):
            _check(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        _check("max_context_tokens", self.max_context_tokens, self.max_context_tokens >= 64, "at least 64")
        _check("attention", self.attention, self.attention in ATTENTIONS, f"one of {', '.join(ATTENTIONS)}")
        _check("fidelity", self.fidelity, self.fidelity in FIDELITIES, f"one of {', '.join(FIDELITIES)}")
        threads = self.num_threads
        _check("num_threads", threads, threads is None or threads >= 1, "at least 1")
