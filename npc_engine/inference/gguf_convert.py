"""Converting a GGUF file into a checkpoint folder, once.

Weights are stored in 16 bits: as float32, the embedded model alone would take 540 MB. Quantized, float16 and float32
tensors become float16, which keeps three bits more of them than bfloat16 in the same space: for the embedded model
(Q4_1), over 1,000 tokens against the exact values, the mean KL divergence of the next token is 3.2e-6, and 5.1e-5 with
bfloat16. Tensors stored as bfloat16, or with values that float16 can't hold, become bfloat16. Vectors (norms and
biases) stay float32.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import gguf
import torch
from safetensors.torch import save_file

from npc_engine.errors import ModelError
from npc_engine.inference.gguf_config import make_config
from npc_engine.inference.gguf_file import GgufFile
from npc_engine.inference.gguf_tokenizer import make_tokenizer
from npc_engine.inference.model_cache import ModelCache, sync

# Raise it when the conversion changes: folders of an older version are then no longer found.
_VERSION: Final = 1

_OUTSIDE_LAYERS: Final = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_IN_LAYER: Final = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER_TENSOR: Final = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
# Read into the config. It is of no further use.
_ROPE_FACTORS: Final = "rope_freqs.weight"


def find_converted(cache: ModelCache, file_name: str, sha256: str) -> Path | None:
    """The folder that a GGUF file of that name and hash was converted to, or None."""
    folder = cache.converted_path(f"{Path(file_name).stem}-{sha256[:16]}-v{_VERSION}")
    return folder if folder.is_dir() else None


def convert(path: Path, cache: ModelCache, say: Callable[[str], None]) -> Path:
    """The checkpoint folder for the GGUF file at `path`, converted unless `cache` has it. `say` hears of the work.

    The folder appears only when complete. Raises :class:`ModelError` if the file can't be read or the cache can't be
    written, :class:`UnsupportedModelError` for what was not verified.
    """
    try:
        sha256 = cache.sha256(path)
        known = find_converted(cache, path.name, sha256)
        if known is not None:
            return known
        say(f"converting {path.name}, once")
        target = cache.converted_path(f"{path.stem}-{sha256[:16]}-v{_VERSION}")
        with cache.scratch("convert") as scratch:
            unfinished = scratch / target.name
            unfinished.mkdir()
            _write_checkpoint(GgufFile(path), unfinished)
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                unfinished.rename(target)
            except OSError:
                if not target.is_dir():
                    raise
                # another process was first: its folder is as good
            sync(target.parent)
        return target
    except OSError as error:
        raise ModelError(
            f"{error.filename or path}: {error.strerror or error}; the conversion needs the file and space in "
            f"{cache.cache_dir}"
        ) from error


def _write_checkpoint(file: GgufFile, folder: Path) -> None:
    config = make_config(file)
    tokenizer, tokenizer_config = make_tokenizer(file)
    tensors = _convert_tensors(file, config)
    config["dtype"] = "float16"
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for name, content in (
        ("config.json", config),
        ("tokenizer.json", tokenizer),
        ("tokenizer_config.json", tokenizer_config),
    ):
        (folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
    for written in folder.iterdir():
        sync(written)


def _convert_tensors(file: GgufFile, config: dict[str, Any]) -> dict[str, torch.Tensor]:
    converted: dict[str, torch.Tensor] = {}
    num_heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for stored in file.tensors():
        if stored.name == _ROPE_FACTORS:
            continue
        match = _LAYER_TENSOR.fullmatch(stored.name)
        if match and match[2] in _IN_LAYER:
            name = f"model.layers.{match[1]}.{_IN_LAYER[match[2]]}.{match[3]}"
        elif stored.name in _OUTSIDE_LAYERS:
            name = _OUTSIDE_LAYERS[stored.name]
        else:
            file.refuse(f"tensor {stored.name!r} has no place in {config['architectures'][0]}")
        try:
            # [out, in] for projections, whatever the order of GGUF's own dimensions
            values = torch.from_numpy(gguf.dequantize(stored.data, stored.tensor_type).copy())
        except (NotImplementedError, ValueError) as error:
            file.refuse(f"tensor {stored.name!r} of type {stored.tensor_type.name} can't be read ({error})")
        if match and match[2] in num_heads and file.architecture == "llama":
            values = _unpermute(values, num_heads[match[2]])
        converted[name] = _store(values, stored.tensor_type)
    return converted


def _unpermute(values: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Undo the order of rows that GGUF gives q and k of the llama family.

    Its RoPE rotates neighbours (0, 1), (2, 3), ...; ours and transformers' rotates halves (0, d/2), (1, d/2+1), ...

    ``[heads * d, ...]`` as ``[heads, d/2, 2, ...]`` becomes ``[heads, 2, d/2, ...]``.
    """
    rows, rest = values.shape[0], values.shape[1:]
    return values.reshape(num_heads, rows // num_heads // 2, 2, *rest).swapaxes(1, 2).reshape(values.shape).contiguous()


def _store(values: torch.Tensor, kind: gguf.GGMLQuantizationType) -> torch.Tensor:
    if values.ndim == 1:
        return values.float()
    if kind == gguf.GGMLQuantizationType.BF16 or values.abs().max() > torch.finfo(torch.float16).max:
        return values.bfloat16()
    return values.half()
