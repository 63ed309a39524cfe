"""Changes of a world: RFC 6902 operations, checked before they touch anything."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

import jsonpatch
import jsonpointer

from npc_engine.errors import PatchError
from npc_engine.world import pointer
from npc_engine.world.entities import EntityId, one_line

Operation = Mapping[str, Any]
"""One RFC 6902 operation: ``{"op": "replace", "path": "/quests/water/stage", "value": "watch"}``."""

_MEMBERS: Final = {
    "add": ("path", "value"),
    "replace": ("path", "value"),
    "test": ("path", "value"),
    "remove": ("path",),
    "move": ("path", "from"),
    "copy": ("path", "from"),
}
_MAX_DEPTH: Final = 32


@dataclass(frozen=True, slots=True)
class PatchStep:
    """One operation with its place in the patch, its own copy of the value, and the entities it reads or writes."""

    index: int
    operation: dict[str, Any]
    paths: tuple[tuple[str, ...], ...]
    entities: tuple[EntityId, ...]

    @classmethod
    def parse(cls, index: int, operation: Operation) -> PatchStep:
        """Check one operation's form; :class:`~npc_engine.errors.PatchError` names what is wrong with it."""
        if not isinstance(operation, Mapping):
            raise PatchError(f'operation {index}: is no mapping; write {{"op": ..., "path": ..., "value": ...}}')
        name = operation.get("op")
        members = _MEMBERS.get(name) if isinstance(name, str) else None
        if members is None:
            raise PatchError(f"operation {index}: op: {name!r} is none of {', '.join(_MEMBERS)}")
        if missing := [member for member in members if member not in operation]:
            raise PatchError(f'operation {index} ({name}): {missing[0]}: is missing; add "{missing[0]}"')
        copied: dict[str, Any] = {"op": name}
        paths, entities = [], []
        for member in members:
            value = operation[member]
            if member == "value":
                copied[member] = _json_value(index, value, 0)
                continue
            if not isinstance(value, str):
                raise PatchError(f"operation {index} ({name}): {member}: must be a text such as /quests/<id>/stage")
            try:
                parts = pointer.parse(value)
                entities.append(pointer.entity_at(parts))
            except ValueError as error:
                raise PatchError(f"operation {index} ({name} {one_line(value)}): {error}") from None
            copied[member] = value
            paths.append(parts)
        return cls(index, copied, tuple(paths), tuple(entities))

    def __str__(self) -> str:
        return f"operation {self.index} ({self.operation['op']} {self.operation['path']})"

    def apply(self, document: dict[str, Any], siblings: Mapping[str, Collection[str]]) -> None:
        """Change `document` in place; it may be half changed when this raises.

        `siblings` are the keys of each collection in the whole world, for the message.
        """
        patch: Any = [self.operation]  # checked above; the stubs want a literal type per operation
        try:
            jsonpatch.JsonPatch(patch).apply(document, in_place=True)
        except (
            jsonpatch.JsonPatchException,
            jsonpointer.JsonPointerException,
            TypeError,
            ValueError,
            LookupError,
            AttributeError,
        ) as error:
            raise PatchError(f"{self}: {self._explain(document, siblings, error)}") from None

    def _explain(self, document: dict[str, Any], siblings: Mapping[str, Collection[str]], error: Exception) -> str:
        path, *source = self.paths
        for parts, adding in (
            (path, self.operation["op"] in ("add", "move", "copy")),
            *((each, False) for each in source),
        ):
            names = siblings.get(parts[0], ())
            if broken := pointer.describe_break(document, parts, adding=adding, siblings=names):
                return broken
        if self.operation["op"] == "test":
            return "the value there is another one; read it again"
        return " ".join(str(error).split())[:200]

    def overlap(self, path: tuple[str, ...]) -> int:
        """How many leading parts this operation shares with the pointer of a mistake."""
        best = 0
        for parts in self.paths:
            shared = next((i for i, (a, b) in enumerate(zip(parts, path, strict=False)) if a != b), None)
            best = max(best, min(len(parts), len(path)) if shared is None else shared)
        return best


def _json_value(index: int, value: object, depth: int) -> Any:
    """A copy that the caller can't change any more; only what JSON can say."""
    if depth > _MAX_DEPTH:
        raise PatchError(f"operation {index}: value: is nested more than {_MAX_DEPTH} levels deep; flatten it")
    match value:
        case None | bool() | str() | int():
            return value
        case float() if math.isfinite(value):
            return value
        case list() | tuple():
            return [_json_value(index, each, depth + 1) for each in value]
        case Mapping():
            for name in value:
                if not isinstance(name, str):
                    raise PatchError(f"operation {index}: value: the name {name!r} is no text; write it in quotes")
            return {name: _json_value(index, each, depth + 1) for name, each in value.items()}
    raise PatchError(f"operation {index}: value: {value!r:.80} is not JSON; use text, numbers, lists and mappings")
