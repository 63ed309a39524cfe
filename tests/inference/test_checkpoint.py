"""resolve() finds every form of model, and says in one line what is wrong with one that it can't use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from npc_engine.errors import ModelError
from npc_engine.inference.checkpoint import resolve
from tests.inference.builders import tiny_checkpoint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path)


def refusal(model: str | Path, tmp_path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        resolve(str(model), tmp_path / "cache")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def split_into_shards(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {name: f"model-{i % 2 + 1:05}-of-00002.safetensors" for i, name in enumerate(sorted(tensors))}
    for shard in set(weight_map.values()):
        save_file({name: tensors[name] for name in tensors if weight_map[name] == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_a_folder(folder: Path, tmp_path: Path) -> None:
    checkpoint = resolve(str(folder), tmp_path / "cache")
    assert checkpoint.folder == folder
    assert checkpoint.name == folder.name
    assert checkpoint.config["architectures"] == ["LlamaForCausalLM"]
    assert checkpoint.num_bytes == (folder / "model.safetensors").stat().st_size
    assert resolve(str(folder), tmp_path / "cache") == checkpoint


def test_the_fingerprint_is_of_bytes(folder: Path, tmp_path: Path) -> None:
    """Equal for a copy elsewhere; another for other weights or another config; no matter what the cache remembers."""
    first = resolve(str(folder), tmp_path / "cache").fingerprint
    assert resolve(str(tiny_checkpoint(tmp_path / "copy")), tmp_path / "other cache").fingerprint == first
    assert resolve(str(tiny_checkpoint(tmp_path, seed=1)), tmp_path / "cache").fingerprint != first
    (tmp_path / "cache" / "hashes.json").write_text("not json")
    assert resolve(str(folder), tmp_path / "cache").fingerprint == first
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    assert resolve(str(folder), tmp_path / "cache").fingerprint != first


def test_shards(folder: Path, tmp_path: Path) -> None:
    split_into_shards(folder)
    checkpoint = resolve(str(folder), tmp_path / "cache")
    assert [path.name for path in checkpoint.weight_files] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]
    index = folder / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": weight_map | {"extra": "model-00001-of-00002.safetensors"}}))
    assert "tensor extra is missing" in refusal(folder, tmp_path)
    index.write_text(json.dumps({"weight_map": {"x": "../other.safetensors"}}))
    assert "../other.safetensors" in refusal(folder, tmp_path)
    index.write_text("{}")
    assert "weight_map is missing" in refusal(folder, tmp_path)
    index.write_text(json.dumps({"weight_map": weight_map}))
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors" in refusal(folder, tmp_path)


@pytest.mark.parametrize("size", [0, 7, 8, 100, 5000, -1])
def test_weights_that_were_cut_short(folder: Path, tmp_path: Path, size: int) -> None:
    """In the length, in the header, in the tensors, by one byte: always named."""
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:size])
    assert str(path) in refusal(folder, tmp_path)


@pytest.mark.parametrize("header", [b"[]", b"{nonsense", b'{"x": 1}', b'{"x": {"data_offsets": 3}}', b"\xff\xfe"])
def test_weights_with_a_damaged_header(folder: Path, tmp_path: Path, header: bytes) -> None:
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert "header is damaged" in refusal(folder, tmp_path)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_missing_files_are_named(folder: Path, tmp_path: Path, name: str) -> None:
    (folder / name).unlink()
    assert str(folder / name) in refusal(folder, tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "\x00", '"text"', "[" * 100_000])
def test_a_damaged_config_is_named(folder: Path, tmp_path: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    assert str(folder / "config.json") in refusal(folder, tmp_path)


def test_pickled_weights_are_refused_with_the_remedy(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    message = refusal(folder, tmp_path)
    assert "pytorch_model.bin" in message
    assert "save_pretrained" in message


@pytest.mark.parametrize("model", ["no-such-model", "./nowhere/here", "/nowhere", "nowhere.gguf", "a/b/c", "a/b.gguf"])
def test_names_of_nothing_list_the_forms(tmp_path: Path, model: str) -> None:
    assert "smollm2-135m-instruct" in refusal(model, tmp_path)


def test_a_file_that_is_no_gguf(tmp_path: Path) -> None:
    (tmp_path / "model.zip").write_bytes(b"PK")
    assert "not a GGUF file" in refusal(tmp_path / "model.zip", tmp_path)
    for content in (b"", b"GGUF", b"GGUF\x03\x00\x00\x00" + b"\xff" * 40, b"junk" * 100):
        (tmp_path / "model.gguf").write_bytes(content)
        assert str(tmp_path / "model.gguf") in refusal(tmp_path / "model.gguf", tmp_path)


def test_a_hub_id(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only safetensors and JSON of the top folder are asked for."""
    asked: dict[str, Any] = {}

    def snapshot_download(repo_id: str, **options: Any) -> str:
        asked.update(options, repo_id=repo_id)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    checkpoint = resolve("some-org/some-model", tmp_path / "cache")
    assert (checkpoint.name, checkpoint.folder) == ("some-org/some-model", folder)
    assert asked["repo_id"] == "some-org/some-model"
    assert all(not pattern.endswith(("bin", "*")) for pattern in asked["allow_patterns"])


def test_a_preset_is_a_hub_id(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`medium` is fetched by its id."""
    asked: list[str] = []

    def snapshot_download(repo_id: str, **_: object) -> str:
        asked.append(repo_id)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert resolve("medium", tmp_path).folder == folder
    assert asked == ["Qwen/Qwen2.5-Coder-0.5B-Instruct"]


def test_a_hub_that_is_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, with the local folder as the remedy."""

    def snapshot_download(repo_id: str, **options: Any) -> str:
        raise LocalEntryNotFoundError("no network\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    message = refusal("some-org/some-model", tmp_path)
    assert "no network" in message
    assert "local folder" in message
