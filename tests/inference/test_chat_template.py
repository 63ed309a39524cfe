"""The pieces of a chat template, put together, are the rendered whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from npc_engine.errors import ModelError, UnsupportedModelError
from npc_engine.inference.chat_markup import ChatMarkup
from npc_engine.inference.chat_template import ChatTemplate
from npc_engine.inference.tokenizer import Tokenizer
from tests.inference.builders import CHATML, byte_level_tokenizer_json, write_tokenizer

LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m.role }}<|sep|>\n\n{{ m.content | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|sep|>\n\n{% endif %}"
)
MISTRAL = (
    "{%- if messages[0].role == 'system' %}{% set sys = messages[0].content %}{% set turns = messages[1:] %}"
    "{%- else %}{% set turns = messages %}{% endif -%}{{ bos_token }}"
    "{%- for m in turns %}{% if m.role == 'user' %}{% if loop.last and sys is defined %}"
    "[INST] {{ sys }}\n\n{{ m.content }}[/INST]{% else %}[INST] {{ m.content }}[/INST]{% endif %}"
    "{%- elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}"
    "{%- else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"
)
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "<|start|>{{ m.role }}\n{{ m.content }}<|eot|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
SYSTEM_IGNORED = (
    "{% for m in messages if m.role != 'system' %}<|start|>{{ m.role }}\n{{ m.content }}<|eot|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
QWEN3 = (
    "{%- for m in messages %}{{- '<|start|>' + m.role + '\\n' + m.content + '<|eot|>\\n' }}{% endfor -%}"
    "{%- if add_generation_prompt %}{{- '<|start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{%- endif %}"
)
CONTROL = ("<|begin|>", "<|start|>", "<|sep|>", "<|eot|>", "<think>", "</think>", "[INST]", "[/INST]", "</s>")


def write(folder: Path, template: str | None, **files: Any) -> Tokenizer:
    write_tokenizer(folder, template)
    spec = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    spec["added_tokens"] += [{"id": 400 + i, "content": token} | flags for i, token in enumerate(CONTROL)]
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"bos_token": "<|begin|>", "eos_token": "</s>"}))
    (folder / "config.json").write_text(json.dumps({"eos_token_id": 2}))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return Tokenizer(folder)


def whole(folder: Path, tokenizer: Tokenizer, turns: list[tuple[str, str]]) -> list[int]:
    """What transformers renders, as tokens."""
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    messages = [{"role": role, "content": content} for role, content in turns]
    text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    assert isinstance(text, str)
    return tokenizer.encode_template(text)


@pytest.mark.parametrize("template", [CHATML, LLAMA3, QWEN3, MISTRAL], ids=["chatml", "llama3", "qwen3", "mistral"])
def test_pieces_of_the_first_turn_make_the_whole(tmp_path: Path, template: str) -> None:
    tokenizer = write(tmp_path, template)
    chat = ChatTemplate.load(tmp_path, tokenizer)
    pieces = [*chat.system_open, *tokenizer.encode_text("Be kind."), *chat.user_open]
    pieces += [*tokenizer.encode_text("Hello!"), *chat.assistant_open]
    assert pieces == whole(tmp_path, tokenizer, [("system", "Be kind."), ("user", "Hello!")])
    assert chat.has_system_role


@pytest.mark.parametrize("template", [CHATML, LLAMA3], ids=["chatml", "llama3"])
def test_pieces_of_a_conversation_make_the_whole(tmp_path: Path, template: str) -> None:
    tokenizer = write(tmp_path, template)
    chat = ChatTemplate.load(tmp_path, tokenizer)
    text = tokenizer.encode_text
    pieces = [*chat.system_open, *text("Be kind."), *chat.user_open, *text("Hello!"), *chat.assistant_open]
    pieces += [*text("Well met."), *chat.next_user_open, *text("Bye."), *chat.assistant_open]
    turns = [("system", "Be kind."), ("user", "Hello!"), ("assistant", "Well met."), ("user", "Bye.")]
    assert pieces == whole(tmp_path, tokenizer, turns)


def test_a_system_text_that_moves_stays_in_front(tmp_path: Path) -> None:
    """Mistral's template moves it to the last user turn: the turns behind the first are those without it."""
    tokenizer = write(tmp_path, MISTRAL)
    chat = ChatTemplate.load(tmp_path, tokenizer)
    assert list(chat.next_user_open) == tokenizer.encode_template("</s>[INST] ")
    assert tokenizer.token_id("</s>") in chat.stop_ids


@pytest.mark.parametrize("template", [NO_SYSTEM, SYSTEM_IGNORED], ids=["raises", "ignores"])
def test_without_a_system_role_the_text_opens_the_first_turn(tmp_path: Path, template: str) -> None:
    tokenizer = write(tmp_path, template)
    chat = ChatTemplate.load(tmp_path, tokenizer)
    assert not chat.has_system_role
    pieces = [*chat.system_open, *tokenizer.encode_text("Be kind."), *chat.user_open]
    pieces += [*tokenizer.encode_text("Hello!"), *chat.assistant_open]
    assert tokenizer.decode(pieces) == "user\nBe kind.\n\nHello!\nassistant\n"
    assert list(chat.system_open) == tokenizer.encode_template("<|start|>user\n")


def test_thinking_is_off(tmp_path: Path) -> None:
    tokenizer = write(tmp_path, QWEN3)
    chat = ChatTemplate.load(tmp_path, tokenizer)
    expected = tokenizer.encode_template("<|eot|>\n<|start|>assistant\n<think>\n\n</think>\n\n")
    assert list(chat.assistant_open) == expected


def test_bos_comes_once_and_only_from_the_template(tmp_path: Path) -> None:
    tokenizer = write(tmp_path, LLAMA3)
    bos = tokenizer.token_id("<|begin|>")
    assert ChatTemplate.load(tmp_path, tokenizer).system_open.count(bos or -1) == 1
    tokenizer = write(tmp_path, CHATML)
    assert bos not in ChatTemplate.load(tmp_path, tokenizer).system_open


def test_a_reply_stops_at_every_declared_end(tmp_path: Path) -> None:
    """eos of config, of generation_config and of the tokenizer, and the template's end of turn."""
    tokenizer = write(tmp_path, LLAMA3, config={"eos_token_id": 7}, generation_config={"eos_token_id": [8, 9]})
    named = {tokenizer.token_id("<|eot|>"), tokenizer.token_id("</s>")}
    assert ChatTemplate.load(tmp_path, tokenizer).stop_ids == {7, 8, 9} | named


def test_where_the_template_is_found(tmp_path: Path) -> None:
    """chat_template.jinja comes before tokenizer_config.json, whose list is searched for 'default'."""
    tokenizer = write(tmp_path, None)
    with pytest.raises(ModelError, match=r"tokenizer_config\.json: no chat_template"):
        ChatTemplate.load(tmp_path, tokenizer)
    config = {"chat_template": [{"name": "tools", "template": ""}, {"name": "default", "template": NO_SYSTEM}]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert not ChatTemplate.load(tmp_path, tokenizer).has_system_role
    (tmp_path / "chat_template.jinja").write_text(CHATML)
    assert ChatTemplate.load(tmp_path, tokenizer).has_system_role


@pytest.mark.parametrize(
    ("template", "error"),
    [
        ("{% for m in messages %}", ModelError),
        ("{{ messages[9].content }}", ModelError),
        ("{{ raise_exception('no') }}", ModelError),
        ("constant", UnsupportedModelError),
        ("{% for m in messages | reverse %}{{ m.content }}{% endfor %}", UnsupportedModelError),
        ("{{ ''.__class__.__mro__ }}", ModelError),
        ("{{ messages.append(1) }}", ModelError),
        ("{% for i in range(10**9) %}x{% endfor %}", ModelError),
    ],
)
def test_bad_templates_are_refused_in_one_line(tmp_path: Path, template: str, error: type[ModelError]) -> None:
    tokenizer = write(tmp_path, template)
    with pytest.raises(error, match=r"tokenizer_config\.json: ") as caught:
        ChatTemplate.load(tmp_path, tokenizer)
    assert "\n" not in str(caught.value)


def test_a_template_has_no_clock() -> None:
    """A date in the header would change every block id at midnight."""
    assert ChatMarkup("{{ strftime_now('%d %b %Y') }}", {}).render([], add_generation_prompt=False) == "26 Jul 2024"


def test_tags_and_filters_of_transformers() -> None:
    """Generation marks, loop controls and unescaped JSON render as transformers renders them."""
    source = (
        "{% for m in messages %}\n  {% if m.role == 'system' %}{% continue %}{% endif %}\n"
        "{% generation %}{{ m | tojson }}{% endgeneration %}\n{% endfor %}"
    )
    messages = [{"role": "system", "content": "x"}, {"role": "user", "content": "<é> 'q'"}]
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=_tokenizers_object())
    expected = theirs.apply_chat_template(messages, chat_template=source, tokenize=False)
    assert ChatMarkup(source, {}).render(messages, add_generation_prompt=False) == expected


def _tokenizers_object() -> Any:
    import tokenizers

    return tokenizers.Tokenizer.from_str(byte_level_tokenizer_json())
