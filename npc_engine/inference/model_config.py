"""What the decoder must know of a checkpoint's ``config.json``, checked before a weight is read.

Only what was verified against transformers is accepted. Everything else raises :class:`UnsupportedModelError`
with the name of the option and the reason, because a decoder that runs on a misread option answers fluently
and wrongly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, NoReturn, cast, get_args

from npc_engine.errors import ModelError, UnsupportedModelError
from npc_engine.inference.rope_config import RopeConfig

Architecture = Literal["LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"]

SUPPORTED_ARCHITECTURES: Final[tuple[Architecture, ...]] = get_args(Architecture)

_ARCHITECTURE_OF_MODEL_TYPE: Final[dict[str, Architecture]] = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


@dataclass(frozen=True, slots=True)
class _Defaults:
    """What transformers assumes for a key that ``config.json`` leaves out; a test compares it with its classes."""

    max_position_embeddings: int
    num_key_value_heads: int | None
    head_dim: int | None = None
    sliding_window: int | None = None


_DEFAULTS: Final[dict[Architecture, _Defaults]] = {
    "LlamaForCausalLM": _Defaults(2048, None),
    "MistralForCausalLM": _Defaults(131072, 8, sliding_window=4096),
    "Qwen2ForCausalLM": _Defaults(32768, 32, sliding_window=4096),
    "Qwen3ForCausalLM": _Defaults(32768, 32, head_dim=128, sliding_window=4096),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The shape of one decoder.

    `max_position_embeddings` is what may be used. It is smaller than the checkpoint's own figure when some layers
    attend through a sliding window: in a context no longer than the window, the window hides nothing, so up to
    there full attention is exact. `sliding_window` is that window, or None where no layer has one.

    `qkv_bias`, `o_bias` and `mlp_bias` say which projections carry a bias; `qk_norm` that queries and keys are
    RMS-normalized per head before RoPE (Qwen3).
    """

    architecture: Architecture
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    tie_word_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    max_position_embeddings: int
    sliding_window: int | None
    rope: RopeConfig
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]

    @classmethod
    def from_dict(cls, config: Mapping[str, Any], source: str = "config.json") -> ModelConfig:
        """Parse `config`, the content of a ``config.json``; `source` names it in messages.

        Raises :class:`ModelError` for a missing or impossible value, :class:`UnsupportedModelError` for an
        option that the decoder was not verified with.
        """
        return _Parser(config, source).parse()


class _Parser:
    def __init__(self, config: Mapping[str, Any], source: str) -> None:
        self._config = config
        self._source = source

    def parse(self) -> ModelConfig:
        architecture = self._architecture()
        defaults = _DEFAULTS[architecture]
        self._refuse_unverified_options()

        hidden_size = self._size("hidden_size")
        num_heads = self._size("num_attention_heads")
        num_layers = self._size("num_hidden_layers")
        num_kv_heads = self._size("num_key_value_heads", defaults.num_key_value_heads or num_heads)
        head_dim = self._size("head_dim", defaults.head_dim or hidden_size // num_heads)
        if num_heads % num_kv_heads:
            self._fail(f"num_attention_heads {num_heads} is no multiple of num_key_value_heads {num_kv_heads}")
        if head_dim % 2:
            self._fail(f"head_dim {head_dim} is odd, but RoPE rotates pairs")

        max_positions = self._size("max_position_embeddings", defaults.max_position_embeddings)
        window = self._sliding_window(architecture, num_layers, defaults)
        is_qwen2 = architecture == "Qwen2ForCausalLM"
        # Qwen2 has biases on q, k and v whatever its config says; Mistral never has any
        attention_bias = architecture in ("LlamaForCausalLM", "Qwen3ForCausalLM") and self._flag("attention_bias")
        return ModelConfig(
            architecture=architecture,
            vocab_size=self._size("vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=self._size("intermediate_size"),
            num_layers=num_layers,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            rms_norm_eps=self._rms_norm_eps(),
            tie_word_embeddings=self._flag("tie_word_embeddings"),
            qkv_bias=is_qwen2 or attention_bias,
            o_bias=attention_bias,
            mlp_bias=architecture == "LlamaForCausalLM" and self._flag("mlp_bias"),
            qk_norm=architecture == "Qwen3ForCausalLM",
            max_position_embeddings=max_positions if window is None else min(window, max_positions),
            sliding_window=window,
            rope=RopeConfig.from_dict(self._config, max_positions, self._source),
            bos_token_id=self._token_id("bos_token_id"),
            eos_token_ids=self._token_ids("eos_token_id"),
        )

    def _architecture(self) -> Architecture:
        names = self._config.get("architectures")
        model_type = self._config.get("model_type")
        name = names[0] if isinstance(names, list) and names else _ARCHITECTURE_OF_MODEL_TYPE.get(str(model_type))
        if name not in SUPPORTED_ARCHITECTURES:
            self._refuse(
                f"architecture {name or model_type or 'unknown'!r} was not verified; "
                f"supported are {', '.join(SUPPORTED_ARCHITECTURES)}"
            )
        return cast(Architecture, name)

    def _refuse_unverified_options(self) -> None:
        if self._config.get("quantization_config"):
            quantization = self._config["quantization_config"]
            method = quantization.get("quant_method", "unknown") if isinstance(quantization, Mapping) else "unknown"
            self._refuse(
                f"quantization_config ({method}) stores weights that the decoder can't read; "
                "use the unquantized checkpoint or a GGUF file"
            )
        activation = self._config.get("hidden_act", "silu")
        if activation != "silu":
            self._refuse(f"hidden_act {activation!r} was not verified; only 'silu' was")
        for key in ("num_experts", "num_local_experts"):
            if self._config.get(key):
                self._refuse(f"{key} {self._config[key]!r}: mixtures of experts were not verified")

    def _sliding_window(self, architecture: Architecture, num_layers: int, defaults: _Defaults) -> int | None:
        if architecture == "LlamaForCausalLM":
            return None
        if "sliding_window" in self._config and self._config["sliding_window"] is None:
            return None
        window = self._size("sliding_window", defaults.sliding_window)
        if architecture == "MistralForCausalLM":
            return window
        if not self._flag("use_sliding_window"):
            return None
        layer_types = self._config.get("layer_types")
        if layer_types is None:
            # transformers slides from this layer on
            return window if self._size("max_window_layers", 28, minimum=0) < num_layers else None
        if not isinstance(layer_types, list) or not set(layer_types) <= {"full_attention", "sliding_attention"}:
            self._refuse(f"layer_types {layer_types!r} was not verified")
        return window if "sliding_attention" in layer_types else None

    def _rms_norm_eps(self) -> float:
        value = self._config.get("rms_norm_eps", 1e-6)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
            self._fail(f"rms_norm_eps must be a small number, not {value!r}")
        return float(value)

    def _size(self, key: str, default: int | None = None, minimum: int = 1) -> int:
        value = self._config.get(key)
        if value is None:
            value = default
        if value is None:
            self._fail(f"{key} is missing")
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            self._fail(f"{key} must be an integer of at least {minimum}, not {value!r}")
        return value

    def _flag(self, key: str) -> bool:
        value = self._config.get(key)
        if not isinstance(value, bool | None):
            self._fail(f"{key} must be true or false, not {value!r}")
        return bool(value)

    def _token_id(self, key: str) -> int | None:
        ids = self._token_ids(key)
        return ids[0] if ids else None

    def _token_ids(self, key: str) -> tuple[int, ...]:
        return parse_token_ids(self._config.get(key), key, self._source)

    def _fail(self, message: str) -> NoReturn:
        raise ModelError(f"{self._source}: {message}")

    def _refuse(self, message: str) -> NoReturn:
        raise UnsupportedModelError(f"{self._source}: {message}")


def parse_token_ids(value: object, key: str, source: str) -> tuple[int, ...]:
    """The token ids in `value`: an integer, a list of them, or None. Raises :class:`ModelError` for anything else."""
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if any(isinstance(i, bool) or not isinstance(i, int) or i < 0 for i in ids):
        raise ModelError(f"{source}: {key} must be a token id or a list of them, not {value!r}")
    return tuple(ids)
