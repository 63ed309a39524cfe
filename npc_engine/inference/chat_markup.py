"""Rendering a checkpoint's Jinja chat template as transformers does, but for two things.

The template is somebody else's code, so it runs in Jinja's sandbox. And it has no clock: ``strftime_now`` always
says the same day, because a header that changed at midnight would give every block a new id, and a replay other
tokens.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

_TODAY: Final = datetime.datetime(2024, 7, 26)  # Llama 3's templates fall back to this day, too

Message = dict[str, str]


class ChatMarkup:
    """A compiled chat template. Raises :class:`jinja2.TemplateError` where the template or its rendering fails."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals |= {"raise_exception": _raise_exception, "strftime_now": _TODAY.strftime}
        self._template = environment.from_string(source)
        self._special_tokens = special_tokens

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        """The prompt for `messages`, each with ``role`` and ``content``. Thinking is off where it can be."""
        return self._template.render(
            **self._special_tokens,
            messages=messages,
            tools=None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            enable_thinking=False,
        )


class _GenerationTag(jinja2.ext.Extension):
    """``{% generation %}`` marks replies for training. Here its body is just rendered."""

    tags = {"generation"}  # noqa: RUF012 - declared so by the base class

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes for HTML
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
