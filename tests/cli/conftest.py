"""A model that is small enough to talk nonsense at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.inference.builders import tiny_checkpoint


@pytest.fixture(scope="session")
def talker_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama whose positions suffice for a world told in small tokens."""
    return tiny_checkpoint(tmp_path_factory.mktemp("model"), max_position_embeddings=8192)


@pytest.fixture
def tiny(talker_folder: Path, tmp_path: Path) -> tuple[str, ...]:
    """Options that make any command use the tiny model and a data folder of its own."""
    return (
        *("--model", str(talker_folder), "--dtype", "float32", "--threads", "1"),
        *("--data-dir", str(tmp_path / "data"), "--cache-dir", str(tmp_path / "cache")),
        *("--max-tokens", "8", "--max-context-tokens", "6000"),
    )
