"""Tiny random checkpoints of every supported family, complete enough for transformers and for us."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

import tokenizers
import torch
import transformers
from tokenizers import decoders, models, pre_tokenizers, trainers

Family = Literal["llama", "mistral", "qwen2", "qwen3", "smollm"]
FAMILIES: Final[tuple[Family, ...]] = ("llama", "mistral", "qwen2", "qwen3", "smollm")

CHATML: Final = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONTROL_TOKENS: Final = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

ROPE: Final[dict[str, dict[str, Any]]] = {
    "default": {"rope_type": "default", "rope_theta": 10000.0},
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 128,
    },
}

_CORPUS: Final = (
    "The innkeeper pours ale and asks about the road to the old mill. "
    "Wolves came down from the hills last night; the guard counted seven. "
    "Gold, 12 coins, for the sword. What do you say, traveller? I'd rather not. "
    "Zażółć gęślą jaźń. Grüße aus der Höhle. 龍は眠る。 "
)


def tiny_checkpoint(
    tmp_path: Path,
    family: Family = "llama",
    rope: str | Mapping[str, Any] = "default",
    seed: int = 0,
    **overrides: Any,
) -> Path:
    """Write a whole checkpoint folder with random weights under `tmp_path` and return it.

    `rope` is a key of :data:`ROPE` or ``rope_parameters``; `overrides` are options of the family's transformers
    config. Weights are large enough for logits to differ clearly; norms and biases are random, too.
    """
    parameters = dict(ROPE[rope] if isinstance(rope, str) else rope)
    config = _config(family, parameters, overrides)
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                parameter.normal_(std=0.5)
    folder = tmp_path / f"{family}-{parameters['rope_type']}-{seed}"
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path, template: str | None = CHATML) -> None:
    """Write a byte-level BPE tokenizer with ChatML's control tokens, and a chat template, into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(byte_level_tokenizer_json(), encoding="utf-8")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    config |= {} if template is None else {"chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


@cache
def byte_level_tokenizer_json() -> str:
    """A byte-level BPE of 400 tokens, the control tokens first and in the vocabulary, as in SmolLM's."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(CONTROL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_CORPUS] * 4, trainer)
    return tokenizer.to_str()


def _config(family: Family, rope: dict[str, Any], overrides: dict[str, Any]) -> transformers.PreTrainedConfig:
    options: dict[str, Any] = {
        "vocab_size": 400,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "rope_parameters": rope,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": family == "smollm",
    }
    if family == "qwen3":
        options["head_dim"] = 32
    if family == "mistral":
        options["sliding_window"] = None
    if family in ("llama", "smollm"):
        return transformers.LlamaConfig(**options | overrides)
    if family == "mistral":
        return transformers.MistralConfig(**options | overrides)
    if family == "qwen2":
        return transformers.Qwen2Config(**options | overrides)
    return transformers.Qwen3Config(**options | overrides)
