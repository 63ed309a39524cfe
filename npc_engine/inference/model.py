"""A loaded model: everything that turns text into token ids and token ids into logits."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from npc_engine.blocks import KVShape, ModelIdentity
from npc_engine.errors import ModelError
from npc_engine.inference import huge_pages
from npc_engine.inference.adapter import Adapter
from npc_engine.inference.chat_template import ChatTemplate
from npc_engine.inference.checkpoint import Checkpoint
from npc_engine.inference.decoder import Decoder
from npc_engine.inference.model_config import ModelConfig
from npc_engine.inference.rope import RotaryTable
from npc_engine.inference.tokenizer import Tokenizer
from npc_engine.inference.weights import load_weights

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """Weights on a device, and the identity that every block of them carries. Knows token ids, and no text."""

    name: str
    config: ModelConfig
    decoder: Decoder
    rope: RotaryTable
    identity: ModelIdentity
    num_threads: int

    @property
    def kv_shape(self) -> KVShape:
        """The shape of this model's blocks."""
        return KVShape(self.config.num_layers, self.config.num_kv_heads, self.config.head_dim, self.decoder.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class Model(Network):
    """A network with its tokenizer and chat template."""

    tokenizer: Tokenizer
    template: ChatTemplate


def load_model(
    checkpoint: Checkpoint,
    *,
    device: str,
    dtype: str | None,
    num_threads: int | None = None,
    adapter: Adapter | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Model:
    """Load a checkpoint. `dtype` None lets the device decide; `num_threads` None takes every processor that this
    process may use; `adapter` is merged into the weights. `on_progress` gets (layers read, layers).

    Raises :class:`ModelError` for a checkpoint, device or dtype that can't be used.
    """
    config = ModelConfig.from_dict(checkpoint.config, str(checkpoint.folder / "config.json"))
    torch_device = pick_device(device)
    torch_dtype = pick_dtype(dtype, torch_device)
    # OpenMP keeps a team of threads for every thread that ever ran a parallel operation, and once there are more of
    # them than processors they sleep between operations, which costs a third of the speed. So the thread that loads
    # takes one processor, and only the engine's thread gets a team.
    torch.set_num_threads(1)
    tokenizer = Tokenizer(checkpoint.folder)
    template = ChatTemplate.load(checkpoint.folder, tokenizer)
    weights = load_weights(
        checkpoint.weight_files,
        config,
        device=torch_device,
        dtype=torch_dtype,
        adapter=adapter,
        on_progress=on_progress,
    )
    if torch_device.type == "cpu":
        huge_pages.use_for_everything()
    threads = num_threads or available_processors()
    identity = ModelIdentity(
        fingerprint=checkpoint.fingerprint,
        adapter=adapter.fingerprint if adapter is not None else None,
        dtype=str(torch_dtype).removeprefix("torch."),
        rope=repr(sorted(asdict(config.rope).items())),
    )
    rope = RotaryTable(config.rope, config.head_dim, torch_device)
    return Model(
        name=checkpoint.name,
        config=config,
        decoder=Decoder(config, weights),
        rope=rope,
        identity=identity,
        num_threads=threads,
        tokenizer=tokenizer,
        template=template,
    )


def available_processors() -> int:
    """Processors that this process may use: its affinity, and the CPU quota of its control group (Linux, v2)."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(affinity, int(quota) // int(period)))
    except (OSError, ValueError):  # no control group, or "max": no quota
        return affinity


def pick_device(name: str) -> torch.device:
    """The device of that name; :class:`ModelError` if it can't be used here."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"device {name!r} can't be used ({reason}); try --device cpu") from error
    return device


def pick_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """The dtype of that name, or what the device computes fastest; :class:`ModelError` for an unknown name."""
    if name is not None:
        if name not in _DTYPES:
            raise ModelError(f"dtype {name!r} is unknown; choose one of {', '.join(_DTYPES)}")
        return _DTYPES[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.bfloat16 if _cpu_has_bfloat16() else torch.float32


def _cpu_has_bfloat16() -> bool:
    # Emulated bfloat16 is slower than float32, so "torch can compute it" is not the question.
    if torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
