"""Tiny checkpoints and a small world for every test that runs the whole engine."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from npc_engine.config import EngineConfig, SamplingParams
from npc_engine.inference import Model
from npc_engine.runtime.loading import LoadedModel, load
from npc_engine.world import WorldState, load_world
from tests.inference.builders import tiny_checkpoint
from tests.world.conftest import FILES, write_world


def pytest_configure() -> None:
    # A shell that starts us in the background has us ignore Ctrl-C, and so would every process that a test starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama checkpoint with room for long prompts."""
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny"), family="llama", max_position_embeddings=4096)


@pytest.fixture(scope="session")
def tiny_loaded(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """The checkpoint of `tiny_folder`, loaded once: models are immutable."""
    cache_dir = tmp_path_factory.mktemp("cache")
    return load(EngineConfig(model=str(tiny_folder), dtype="float32", num_threads=1, cache_dir=cache_dir))


@pytest.fixture(scope="session")
def tiny_model(tiny_loaded: LoadedModel) -> Model:
    return tiny_loaded.model


@pytest.fixture
def mill_folder(tmp_path: Path) -> Path:
    """A world of two NPCs in two places; the player stands with one of them."""
    return write_world(tmp_path / "mill", FILES)


@pytest.fixture
def mill_state(mill_folder: Path) -> WorldState:
    return WorldState.start(load_world(mill_folder))


@pytest.fixture
def tiny_config(tiny_folder: Path, tmp_path: Path) -> EngineConfig:
    """Settings of an engine whose replies are a few greedy tokens long."""
    return EngineConfig(
        model=str(tiny_folder),
        dtype="float32",
        num_threads=1,
        data_dir=tmp_path / "data",
        cache_dir=tmp_path / "cache",
        max_store_size=64 << 20,
        max_block_memory=256 << 20,
        max_utterance_tokens=64,
        sampling=SamplingParams(max_tokens=6),
    )
