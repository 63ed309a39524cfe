"""JSON pointers (RFC 6901) into a world's document."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any, Final

from npc_engine.world.entities import COLLECTIONS, KEY_PATTERN, SINGLETONS, EntityId, entity_id, one_line, suggest

_ROOTS: Final = (*SINGLETONS, *COLLECTIONS)


def parse(pointer: str) -> tuple[str, ...]:
    """``/places/basin`` -> ``("places", "basin")``; ValueError says what is wrong with the pointer."""
    if not pointer.startswith("/"):
        raise ValueError(
            f"a path begins with /, for example /places/<id>/conditions/<name>; {suggest(pointer, _ROOTS)}"
        )
    if not pointer.isprintable():
        raise ValueError("a path holds no line ends or other control characters; remove them")
    if re.search(r"~(?![01])", pointer):
        raise ValueError("a ~ in a path is written ~0, and a / inside a name ~1")
    return tuple(part.replace("~1", "/").replace("~0", "~") for part in pointer[1:].split("/"))


def join(parts: Sequence[str | int]) -> str:
    """How an error shows the parts of a pointer; the inverse of :func:`parse` as far as they can be printed."""
    return one_line("".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts))


def entity_at(parts: Sequence[str]) -> EntityId:
    """The entity whose document a pointer leads into; ValueError when it leads above or beside all of them."""
    root, *rest = parts
    if kind := SINGLETONS.get(root):
        return entity_id(kind)
    if root not in COLLECTIONS:
        raise ValueError(f'no "{root}" in a world; {suggest(root, _ROOTS)}')
    if not rest:
        raise ValueError(f"/{root} is a whole collection; change one entity at a time, /{root}/<id>")
    if not re.fullmatch(KEY_PATTERN, rest[0]):
        raise ValueError(f'"{rest[0]}" is no id; use letters, digits, - and _ (at most 64)')
    return entity_id(COLLECTIONS[root], rest[0])


def describe_break(document: Any, parts: Sequence[str], *, adding: bool, siblings: Collection[str]) -> str | None:
    """Where a path stops existing in a document, and what exists there; None when it doesn't stop.

    With `adding` the last part need not exist. `siblings` are the keys of the collection that ``parts[0]`` names, of
    which `document` need not hold all.
    """
    for depth, part in enumerate(parts):
        here = join(parts[:depth]) or "/"
        last = depth == len(parts) - 1
        if isinstance(document, dict):
            if part in document:
                document = document[part]
                continue
            if adding and last:
                return None
            names = siblings if depth == 1 and parts[0] in COLLECTIONS else document
            return f'no "{part}" in {here}; {suggest(part, names)}'
        if isinstance(document, list):
            if adding and last and (part == "-" or part == str(len(document))):
                return None
            if re.fullmatch(r"0|[1-9][0-9]{0,8}", part) and int(part) < len(document):
                document = document[int(part)]
                continue
            entries = f"0 to {len(document) - 1}" if document else "none yet"
            return f'no entry "{part}" in {here}; the entries are {entries}, and - adds one at the end'
        return f'{here} is a single value and holds no "{part}"; name {here} itself'
    return None
