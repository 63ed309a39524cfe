"""Puts pydantic's findings into one plain sentence each: what is wrong, and the remedy."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from types import UnionType
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from npc_engine.world.entities import suggest
from npc_engine.world.references import Path


class Mistake(NamedTuple):
    """What is wrong at `path` inside a record."""

    path: Path
    message: str


def mistakes(error: ValidationError, model: type[BaseModel], raw: Mapping[Path, str] | None = None) -> list[Mistake]:
    """All findings of one failed validation of `model`.

    `raw` holds, for scalars that a file wrote without quotes, what was written there.
    """
    found = []
    for details in error.errors(include_url=False):
        path = tuple(part for part in details["loc"] if part != "[key]")
        found.append(Mistake(path, _message(details, path, model, raw or {})))
    return found


def _message(details: ErrorDetails, path: Path, model: type[BaseModel], raw: Mapping[Path, str]) -> str:
    value = details["input"]
    context = details.get("ctx", {})
    match details["type"]:
        case "missing":
            return "is missing; add it"
        case "extra_forbidden":
            fields = _fields_at(model, path[:-1])
            return f"unknown field; {suggest(str(path[-1]), fields)}"
        case "string_type" if raw.get(path) in ("", "~"):
            return "is empty; write a text"
        case "string_type" if path in raw:
            written = raw[path][:40]
            return f'must be text, but YAML reads {written} as {_describe(value)}; write "{written}" in quotes'
        case "string_type":
            return f"must be text, not {_describe(value)}"
        case "string_too_short":
            return "is empty; write a text"
        case "string_unicode":
            return "holds half of a surrogate pair; write the whole character"
        case "string_pattern_mismatch":
            return f"{value!r} is no id; use letters, digits, - and _ (at most 64)"
        case "int_type":
            return f"must be a whole number, not {_describe(value)}"
        case "greater_than_equal":
            return f"must be at least {context['ge']}, not {_number(value)}"
        case "less_than_equal":
            return f"must be at most {context['le']}, not {_number(value)}"
        case "less_than":
            return f"must be less than {context['lt']}, not {_number(value)}"
        case "model_type" | "dict_type":
            return f"must be a mapping (lines of the form name: value), not {_describe(value)}"
        case "tuple_type":
            return f"must be a list (lines that begin with -), not {_describe(value)}"
        case "too_short":
            return "is empty; it needs at least one entry"
        case "value_error":
            return str(context["error"])
        case _:
            return details["msg"]


def _describe(value: object) -> str:
    match value:
        case None:
            return "nothing"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return f"the number {_number(value)}"
        case str():
            return "a text"
        case datetime.date():
            return "a date"
        case list() | tuple():
            return "a list"
        case dict():
            return "a mapping"
        case _:
            return f"a {type(value).__name__}"


def _number(value: float) -> str:
    # Python refuses to write out an integer of thousands of digits.
    return "a huge number" if isinstance(value, int) and value.bit_length() > 128 else str(value)


def _fields_at(model: type[BaseModel], path: Path) -> list[str]:
    """The fields that may stand at `path` inside `model`; none where no record is expected."""
    annotation: Any = model
    for part in path:
        annotation = _inner(annotation)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            annotation = annotation.model_fields[str(part)].annotation
        else:  # a mapping's last argument, or a tuple's first, is the type of what it holds
            arguments = get_args(annotation)
            annotation = arguments[-1] if get_origin(annotation) is dict else arguments[0]
    annotation = _inner(annotation)
    return list(annotation.model_fields) if isinstance(annotation, type) and issubclass(annotation, BaseModel) else []


def _inner(annotation: Any) -> Any:
    """What is left of ``Annotated[T, ...]`` or ``T | None``."""
    while get_origin(annotation) in (Annotated, Union, UnionType):
        annotation = get_args(annotation)[0]
    return annotation
