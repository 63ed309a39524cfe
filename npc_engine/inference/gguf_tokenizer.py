"""A ``tokenizer.json`` and ``tokenizer_config.json`` from the metadata of a GGUF file."""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Final

from npc_engine.inference.gguf_file import GgufFile


class _TokenType(IntEnum):
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


# How text is cut before BPE, as regular expressions in the syntax of Oniguruma. They are part of what a model
# learned: another cut gives other tokens.
_CONTRACTIONS: Final = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL: Final = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3: Final = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _TAIL
_QWEN2: Final = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _TAIL
_TEKKEN: Final = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _TAIL
)


def _byte_level(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _split(regex: str) -> dict[str, Any]:
    cut = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [cut, _byte_level(use_regex=False)]}


_DIGITS: Final = {"type": "Digits", "individual_digits": True}
_PRE_TOKENIZERS: Final[dict[str, dict[str, Any]]] = {
    "default": _byte_level(use_regex=True),
    "gpt-2": _byte_level(use_regex=True),
    "smollm": {"type": "Sequence", "pretokenizers": [_DIGITS, _byte_level(use_regex=True)]},
    "llama-bpe": _split(_LLAMA3),
    "qwen2": _split(_QWEN2),
    "deepseek-r1-qwen": _split(_QWEN2),
    "tekken": _split(_TEKKEN),
}
_WHOLE_WORDS_FIRST: Final = ("llama-bpe", "tekken")  # a word in the vocabulary is one token, whatever the merges say


def make_tokenizer(file: GgufFile) -> tuple[dict[str, Any], dict[str, Any]]:
    """``tokenizer.json`` and ``tokenizer_config.json`` (with the chat template, if the file has one) as objects.

    Raises :class:`UnsupportedModelError` for a kind of tokenizer that was not verified, :class:`ModelError` for
    missing metadata.
    """
    tokens: list[str] = file.get("tokenizer.ggml.tokens", list)
    types = file.find("tokenizer.ggml.token_type", list) or [_TokenType.NORMAL] * len(tokens)
    kind = file.get("tokenizer.ggml.model", str)
    if kind == "gpt2":
        tokenizer = _byte_level_bpe(file, tokens)
    elif kind == "llama":
        tokenizer = _sentencepiece_bpe(file, tokens, types)
    else:
        file.refuse(f"tokenizer {kind!r} was not verified; supported are gpt2 and llama")
    added = [
        _added_token(token_id, token, special=types[token_id] != _TokenType.USER_DEFINED)
        for token_id, token in enumerate(tokens)
        if types[token_id] in (_TokenType.UNKNOWN, _TokenType.CONTROL, _TokenType.USER_DEFINED)
    ]
    tokenizer = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added} | tokenizer
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    for name, key in (("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding")):
        token_id = file.find(f"tokenizer.ggml.{key}_token_id", int)
        if token_id is not None and token_id < len(tokens):
            config[name] = tokens[token_id]
    template = file.find("tokenizer.chat_template", str)
    if template is not None:
        config["chat_template"] = template
    return tokenizer, config


def _byte_level_bpe(file: GgufFile, tokens: list[str]) -> dict[str, Any]:
    pre = file.find("tokenizer.ggml.pre", str) or "default"
    if pre not in _PRE_TOKENIZERS:
        file.refuse(f"tokenizer.ggml.pre {pre!r} was not verified; supported are {', '.join(_PRE_TOKENIZERS)}")
    merges = [merge.split(" ") for merge in file.get("tokenizer.ggml.merges", list)]
    return {
        "normalizer": {"type": "NFC"} if pre in ("qwen2", "deepseek-r1-qwen") else None,
        "pre_tokenizer": _PRE_TOKENIZERS[pre],
        "post_processor": None,
        "decoder": _byte_level(use_regex=True),
        "model": _bpe(tokens, merges, ignore_merges=pre in _WHOLE_WORDS_FIRST),
    }


def _sentencepiece_bpe(file: GgufFile, tokens: list[str], types: list[int]) -> dict[str, Any]:
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    steps: list[dict[str, Any]] = [space]
    decoder: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if file.find("tokenizer.ggml.add_space_prefix", bool) is not False:
        steps.insert(0, {"type": "Prepend", "prepend": "▁"})
        decoder.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    unknown = next((token for token, kind in zip(tokens, types, strict=True) if kind == _TokenType.UNKNOWN), None)
    merges = _merges_from_scores(tokens, file.get("tokenizer.ggml.scores", list), types)
    return {
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": decoder},
        "model": _bpe(tokens, merges) | {"byte_fallback": True, "fuse_unk": True, "unk_token": unknown},
    }


def _merges_from_scores(tokens: list[str], scores: list[float], types: list[int]) -> list[list[str]]:
    """The merges that a SentencePiece BPE vocabulary implies: it keeps the results and their ranks, not the pairs."""
    ids = {token: i for i, token in enumerate(tokens) if types[i] == _TokenType.NORMAL}
    ranked: list[tuple[float, int, int, list[str]]] = []
    for token, token_id in ids.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in ids and right in ids:
                ranked.append((-scores[token_id], ids[left], ids[right], [left, right]))
    ranked.sort(key=lambda item: item[:3])
    return [pair for *_, pair in ranked]


def _bpe(tokens: list[str], merges: list[list[str]], *, ignore_merges: bool = False) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": ignore_merges,
        "vocab": {token: token_id for token_id, token in enumerate(tokens)},
        "merges": merges,
    }


def _added_token(token_id: int, content: str, *, special: bool) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": token_id, "content": content, "special": special} | flags
