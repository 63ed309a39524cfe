"""Reads a world folder: ``world.yaml``, ``characters/*.yaml``, ``lore/*.yaml``.

A file's name without ``.yaml`` is the key of what it holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

from pydantic import ValidationError

from npc_engine.errors import WorldError
from npc_engine.world import references as refs
from npc_engine.world import yaml_document
from npc_engine.world.entities import KEY_PATTERN, Kind, one_line, suggest
from npc_engine.world.mistakes import mistakes
from npc_engine.world.models import Character, Lore, Record, World, WorldFile
from npc_engine.world.yaml_document import YamlDocument

R = TypeVar("R", bound=Record)


class Problem(NamedTuple):
    """One mistake in a world. ``str(problem)`` is ``file:line: field: what is wrong; remedy``."""

    file: Path
    line: int
    field: str
    message: str

    def __str__(self) -> str:
        return one_line(f"{self.file}:{self.line}: {self.field}: {self.message}")


def load_world(path: Path | str) -> World:
    """The world in a folder; :class:`~npc_engine.errors.WorldError` names its first problem and counts the others."""
    folder = _WorldFolder(Path(path))
    world = folder.read()
    if world is None or folder.problems:
        first, *others = folder.sorted_problems()
        more = f" (and {len(others)} more; see npc-engine world check {path})" if others else ""
        raise WorldError(f"{first}{more}")
    return world


def check_world(path: Path | str) -> list[Problem]:
    """All problems of the world in a folder, by file and line; empty when it loads."""
    folder = _WorldFolder(Path(path))
    folder.read()
    return folder.sorted_problems()


def list_worlds(folder: Path | str) -> list[str]:
    """Names of the folders inside `folder` that hold a ``world.yaml``."""
    path = Path(folder)
    return sorted(each.parent.name for each in path.glob("*/world.yaml")) if path.is_dir() else []


class _WorldFolder:
    """One reading of a folder; collects problems instead of stopping at the first."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problems: list[Problem] = []

    def sorted_problems(self) -> list[Problem]:
        return sorted(self.problems, key=lambda problem: (str(problem.file), problem.line, problem.field))

    def read(self) -> World | None:
        if not self.path.is_dir():
            self._report_no_folder()
            return None
        world_yaml = self.path / "world.yaml"
        if not world_yaml.is_file():
            self._report(world_yaml, "world", "no such file; a world folder needs a world.yaml")
            return None
        world_document, world = self._read_file(world_yaml, WorldFile)
        characters = self._read_files("characters", Character)
        lore = self._read_files("lore", Lore)
        if not characters:
            message = "no character; write at least one file such as characters/odile.yaml"
            self._report(self.path / "characters", "characters", message)

        # What stands in a broken file still exists: report its mistake, not those that follow from it.
        existing = {Kind.CHARACTER: set(characters)}
        if not world_document.errors:
            existing[Kind.PLACE] = _keys(world_document, "places")
        if world is not None:
            self._check(world_yaml, world_document, ("start", "player"), world.start.player, existing)
            for key, place in world.places.items():
                self._check(world_yaml, world_document, ("places", key), place, existing)
            for key, quest in world.quests.items():
                self._check(world_yaml, world_document, ("quests", key), quest, existing)
        for name, files in (("characters", characters), ("lore", lore)):
            for key, (document, record) in files.items():
                if record is not None:
                    self._check(self.path / name / f"{key}.yaml", document, (), record, existing)
        if world is None or self.problems:
            return None
        return World.compose(
            world,
            {key: record for key, (_, record) in lore.items() if record is not None},
            {key: record for key, (_, record) in characters.items() if record is not None},
        )

    def _read_files(self, name: str, model: type[R]) -> dict[str, tuple[YamlDocument, R | None]]:
        files = {}
        for file in sorted((self.path / name).glob("*.y*ml")):
            if file.suffix != ".yaml":
                self._report(file, name, f"rename it to {file.stem}.yaml; other endings are not read")
            elif not re.fullmatch(KEY_PATTERN, file.stem):
                self._report(file, name, f'"{file.stem}" is no id; name the file with letters, digits, - and _')
            else:
                files[file.stem] = self._read_file(file, model)
        return files

    def _read_file(self, file: Path, model: type[R]) -> tuple[YamlDocument, R | None]:
        try:
            source = file.read_bytes()
        except OSError as error:
            self._report(file, "file", f"can't be read ({error.strerror}); check its permissions")
            return YamlDocument(), None
        document = yaml_document.parse(source)
        for line, path, message in document.errors:
            self.problems.append(Problem(file, line, _field(path), message))
        if document.errors:
            return document, None
        try:
            return document, model.model_validate(document.data)
        except ValidationError as error:
            for mistake in mistakes(error, model, document.raw):
                self.problems.append(Problem(file, document.line(mistake.path), _field(mistake.path), mistake.message))
        return document, None

    def _check(
        self, file: Path, document: YamlDocument, prefix: refs.Path, record: Record, existing: dict[Kind, set[str]]
    ) -> None:
        for reference in refs.references(record):
            if reference.kind not in existing or reference.key in existing[reference.kind]:
                continue
            if reference.path == ("home",) and "home" not in document.data:  # it is the place, and reported there
                continue
            path = (*prefix, *reference.path)
            message = f'no {reference.kind} "{reference.key}"; {suggest(reference.key, existing[reference.kind])}'
            self.problems.append(Problem(file, document.line(path), _field(path), message))

    def _report(self, file: Path, field: str, message: str) -> None:
        self.problems.append(Problem(file, 1, field, message))

    def _report_no_folder(self) -> None:
        if self.path.exists():
            self._report(self.path, "world", f"is a file; name the folder, {self.path.parent}")
            return
        beside = list_worlds(self.path.parent)
        remedy = f"worlds beside it: {', '.join(beside)}" if beside else "there are no worlds beside it"
        self._report(self.path, "world", f"no such folder; {remedy}")


def _keys(document: YamlDocument, name: str) -> set[str]:
    """Keys of a top-level mapping, whether or not its values are valid."""
    mapping = document.data.get(name) if isinstance(document.data, dict) else None
    return set(mapping) if isinstance(mapping, dict) else set()


def _field(path: refs.Path) -> str:
    """``memories[2].text``; ``file`` for a file as a whole."""
    return "".join(_parts(path)).removeprefix(".") or "file"


def _parts(path: refs.Path) -> Iterator[str]:
    for part in path:
        yield f"[{part}]" if isinstance(part, int) else f".{part}"
