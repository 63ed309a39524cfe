"""The short form in which people change a world: ``places/basin/conditions/lamp=The lamp is green.``"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

from npc_engine.errors import PatchError
from npc_engine.world import pointer
from npc_engine.world.entities import EntityId, one_line, suggest

_FREE_NAMES: Final = ("conditions", "exits", "relations")
"""Mappings in which a game may use names of its own."""


def parse_assignment(
    excerpt: Callable[[list[EntityId]], dict[str, Any]], siblings: Mapping[str, Collection[str]], text: str
) -> dict[str, Any]:
    """An RFC 6902 operation for ``pointer=value``; see :meth:`WorldState.parse_assignment`.

    `excerpt` makes the document of some entities, `siblings` are the keys of each collection.
    """
    name, equals, written = text.partition("=")
    name, written = name.strip(), written.strip()
    if not equals:
        raise PatchError(
            f"{one_line(name)}: no value; write path=value, for example places/<id>/conditions/<name>=A sentence."
        )
    path = "/" + name.removeprefix("/")
    name = one_line(name)
    try:
        parts = pointer.parse(path)
        document = excerpt([pointer.entity_at(parts)])
    except ValueError as error:
        raise PatchError(f"{name}: {error}") from None
    if broken := pointer.describe_break(document, parts, adding=True, siblings=siblings.get(parts[0], ())):
        raise PatchError(f"{name}: {broken}")
    *above, last = parts
    parent: Any = document
    for part in above:
        parent = parent[int(part)] if isinstance(parent, list) else parent[part]

    if isinstance(parent, list):
        exists = last not in ("-", str(len(parent)))
        current = parent[int(last)] if exists else None
    else:
        exists, current = last in parent, parent.get(last)
        is_free = bool(above) and above[-1] in _FREE_NAMES
        if not exists and not is_free and len(parts) > 2:
            raise PatchError(f'{name}: no "{last}" in {pointer.join(above)}; {suggest(last, parent)}')
        if exists and is_free and not written:
            return {"op": "remove", "path": path}
    try:
        value = _read(parts, current, written)
    except ValueError as error:
        raise PatchError(f"{name}: {error}") from None
    return {"op": "replace" if exists else "add", "path": path, "value": value}


def _read(parts: tuple[str, ...], current: Any, written: str) -> Any:
    """The value that `written` means where `current` stands, or None where nothing does yet."""
    if isinstance(current, int) or parts[-1] == "day":
        if not written.isascii() or not written.removeprefix("-").isdigit() or len(written) > 12:
            raise ValueError(f"must be a whole number, not {written!r}")
        return int(written)
    if parts[-1] == "audience" and not written.startswith("["):
        return written
    if parts[-2:-1] == ("memories",) and not written.startswith("{"):
        return {"text": written}
    if isinstance(current, dict | list) or len(parts) <= 2 or written.startswith(("{", "[")):
        # A sentence may begin with a bracket: only where structure stands now, or could, is it read as JSON.
        if isinstance(current, str) and parts[-1] != "audience":
            return written
        try:
            return json.loads(written)
        except (ValueError, RecursionError):
            raise ValueError(
                f"holds several fields; write its value as JSON, or name one of them: {pointer.join(parts)}/..."
            ) from None
    return written
