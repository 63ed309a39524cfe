"""A checkpoint's chat template, cut into the pieces between which the engine puts its own text.

::

    system_open | header, blocks ... | user_open | utterance | assistant_open | reply | next_user_open | utterance | ...

The pieces are found by rendering the checkpoint's own template with placeholders, so they are what the model was
trained on, whatever its markup.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import jinja2

from npc_engine.errors import ModelError, UnsupportedModelError
from npc_engine.inference.chat_markup import ChatMarkup, Message
from npc_engine.inference.json_file import read_json
from npc_engine.inference.model_config import parse_token_ids
from npc_engine.inference.tokenizer import Tokenizer

# Letters and digits only, so that no template trims, escapes or splits them
_SYSTEM, _USER, _REPLY, _NEXT_USER = "Zq7System1", "Zq7User2", "Zq7Reply3", "Zq7User4"
# Between the system text and the first utterance, where a template has no system role
_NO_SYSTEM_SEPARATOR: Final = "\n\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTemplate:
    """The pieces as token ids.

    - `system_open` starts the prompt, with BOS where the template writes one, and opens the system text.
    - `user_open` closes the system text and opens the first utterance.
    - `assistant_open` closes an utterance and opens the reply (with an empty ``<think>`` block where the template
      turns thinking off so).
    - `next_user_open` closes the reply, with the end-of-turn token, and opens the next utterance.
    - A reply ends at any of `stop_ids`; the token itself belongs to `next_user_open`.

    `has_system_role` is False where the system text stands at the start of the first user turn instead.

    In the middle of a conversation the pieces give what the model saw when it replied, which differs from a fresh
    rendering where a template rewrites the past (Qwen3 takes empty ``<think>`` blocks out of it).
    """

    system_open: tuple[int, ...]
    user_open: tuple[int, ...]
    assistant_open: tuple[int, ...]
    next_user_open: tuple[int, ...]
    stop_ids: frozenset[int]
    has_system_role: bool

    @property
    def stop_id(self) -> int:
        """The token that ends a written reply: of `stop_ids`, the one that the template itself writes there."""
        closing = (token_id for token_id in self.next_user_open if token_id in self.stop_ids)
        return next(closing, min(self.stop_ids))

    @classmethod
    def load(cls, folder: Path, tokenizer: Tokenizer) -> ChatTemplate:
        """The chat template of the checkpoint in `folder`.

        Raises :class:`ModelError` if there is none or it doesn't render, :class:`UnsupportedModelError` if it does
        not put texts one behind the other.
        """
        path, source = _find_source(folder)
        try:
            markup = ChatMarkup(source, tokenizer.special_tokens)
            pieces = _cut(markup)
        except UnsupportedModelError as error:
            raise UnsupportedModelError(f"{path}: {error}") from None
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            raise ModelError(f"{path}: chat_template does not render ({error}); use the one of its model") from error
        if tokenizer.adds_prefix_space:
            # the space in front of a text comes with the text
            pieces = pieces.without_trailing_spaces()
        next_user_open = tuple(tokenizer.encode_template(pieces.next_user_open, continues=True))
        return cls(
            system_open=tuple(tokenizer.encode_template(pieces.system_open)),
            user_open=tuple(tokenizer.encode_template(pieces.user_open, continues=True)),
            assistant_open=tuple(tokenizer.encode_template(pieces.assistant_open, continues=True)),
            next_user_open=next_user_open,
            stop_ids=_configured_stop_ids(folder, tokenizer) | _end_of_turn(pieces.next_user_open, tokenizer),
            has_system_role=pieces.has_system_role,
        )


@dataclass(frozen=True, slots=True)
class _Pieces:
    system_open: str
    user_open: str
    assistant_open: str
    next_user_open: str
    has_system_role: bool

    def without_trailing_spaces(self) -> _Pieces:
        return _Pieces(
            self.system_open.removesuffix(" "),
            self.user_open.removesuffix(" "),
            self.assistant_open,  # the reply's first token brings its own space
            self.next_user_open.removesuffix(" "),
            self.has_system_role,
        )


def _cut(markup: ChatMarkup) -> _Pieces:
    has_system_role = True
    opening = _system_turn(markup)
    if opening is None:
        has_system_role = False
        opening = _between(
            _render(markup, [("user", _SYSTEM + _NO_SYSTEM_SEPARATOR + _USER)], prompt=True), _SYSTEM, _USER
        )
    if opening is None:
        raise UnsupportedModelError("chat_template does not put the first user text where it can be found")
    turns = [("user", _USER), ("assistant", _REPLY), ("user", _NEXT_USER)]
    # Some templates (Mistral's) move the system text to the last user turn: look at the turns without it
    later = _between(_render(markup, turns, prompt=True), _USER, _REPLY, _NEXT_USER)
    if later is None:
        raise UnsupportedModelError("chat_template does not put the turns one behind the other")
    system_open, user_open, assistant_open = opening
    return _Pieces(system_open, user_open, assistant_open, later[2], has_system_role)


def _system_turn(markup: ChatMarkup) -> list[str] | None:
    try:
        rendered = _render(markup, [("system", _SYSTEM), ("user", _USER)], prompt=True)
    except jinja2.TemplateError:
        return None  # it refuses the role
    return _between(rendered, _SYSTEM, _USER)


def _render(markup: ChatMarkup, turns: list[tuple[str, str]], *, prompt: bool) -> str:
    messages: list[Message] = [{"role": role, "content": content} for role, content in turns]
    return markup.render(messages, add_generation_prompt=prompt)


def _between(text: str, *placeholders: str) -> list[str] | None:
    """What stands before, between and behind `placeholders`, if each is there once and in this order."""
    parts = []
    for placeholder in placeholders:
        before, found, text = text.partition(placeholder)
        if not found or placeholder in text:
            return None
        parts.append(before)
    return [*parts, text]


def _find_source(folder: Path) -> tuple[Path, str]:
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path, path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(f"{path}: {error}") from error
    for name in ("chat_template.json", "tokenizer_config.json"):
        path = folder / name
        template: Any = read_json(path).get("chat_template") if path.is_file() else None
        if isinstance(template, list):  # several, by name
            template = next((t.get("template") for t in template if t.get("name") == "default"), None)
        if isinstance(template, str):
            return path, template
    raise ModelError(
        f"{folder / 'tokenizer_config.json'}: no chat_template, so this looks like a base model; use an instruct "
        "checkpoint, or put its template into chat_template.jinja in the same folder"
    )


def _configured_stop_ids(folder: Path, tokenizer: Tokenizer) -> frozenset[int]:
    ids: set[int] = set()
    for name in ("config.json", "generation_config.json"):
        path = folder / name
        if path.is_file():
            ids.update(parse_token_ids(read_json(path).get("eos_token_id"), "eos_token_id", str(path)))
    eos = tokenizer.token_id(tokenizer.special_tokens.get("eos_token", ""))
    return frozenset(ids if eos is None else ids | {eos})


def _end_of_turn(next_user_open: str, tokenizer: Tokenizer) -> frozenset[int]:
    """The control token that closes a reply, if the template writes one right behind it."""
    first = tokenizer.encode_template(next_user_open.lstrip(), continues=True)[:1]
    return tokenizer.control_ids.intersection(first)
