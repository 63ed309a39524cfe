"""One YAML file as plain data that remembers its lines."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import yaml

from npc_engine.world.references import Path

MAX_BYTES: Final = 1 << 20
MAX_DEPTH: Final = 20

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml is about ten times faster
_TOO_DEEP: Final = "is nested too deeply; a world needs a few levels"
_TAG: Final = "tag:yaml.org,2002:"
_REMEDIES: Final = {
    "mapping values are not allowed": "put a text that contains ': ' in quotes",
    "tab character": "indent with spaces",
    "cannot start any token": "indent with spaces, and put a text that begins with a special character in quotes",
    "expected <block end>": "check the indentation, and quote the whole text if it begins with a quote",
    "could not find expected ':'": "write name: value, and indent a text that goes over several lines",
    "quoted scalar": "close the quotes",
    "expected a single document": "keep one document per file, without ---",
}


class SourceError(NamedTuple):
    """What is wrong at a line of the file; `path` is where that is in its data."""

    line: int
    path: Path
    message: str


@dataclass(slots=True)
class YamlDocument:
    """`data` is None where the file could not be read at all. Lines count from 1.

    `raw` holds what was written for a scalar that YAML does not read as text (``no``, ``19:40``).
    """

    data: Any = None
    lines: dict[Path, int] = field(default_factory=dict)
    raw: dict[Path, str] = field(default_factory=dict)
    errors: list[SourceError] = field(default_factory=list)

    def line(self, path: Path) -> int:
        """The line of `path`, or of the closest thing around it."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


def parse(source: bytes) -> YamlDocument:
    """Read one file. Never raises for what the file holds: see `errors`."""
    document = YamlDocument()
    if len(source) > MAX_BYTES:
        document.errors.append(SourceError(1, (), f"is larger than {MAX_BYTES} bytes; split it"))
        return document
    try:
        text = source.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = source.count(b"\n", 0, error.start) + 1
        document.errors.append(SourceError(line, (), f"byte {source[error.start]:#04x} is not UTF-8; save it as UTF-8"))
        return document
    try:
        if deep := _too_deep(text):
            document.errors.append(SourceError(deep, (), _TOO_DEEP))
            return document
        root = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = (error.problem or error.context or "can't be read").replace("\n", " ")
        # The parser notices an open quote only where the file ends; the mistake is where it opened.
        if error.context_mark and "quoted scalar" in (error.context or ""):
            mark, problem = error.context_mark, f"{error.context}, {problem}"
        remedy = next((text for sign, text in _REMEDIES.items() if sign in problem), "check the indentation and quotes")
        document.errors.append(SourceError(mark.line + 1 if mark else 1, (), f"is no valid YAML: {problem}; {remedy}"))
        return document
    except yaml.reader.ReaderError as error:
        position = error.position if isinstance(error.position, int) else 0
        line = text.encode().count(b"\n", 0, position) + 1
        document.errors.append(SourceError(line, (), "holds a control character that YAML forbids; remove it"))
        return document
    if root is None:
        document.errors.append(SourceError(1, (), "the file is empty; write its fields, one per line, as name: value"))
        return document
    document.data = _Reader(document).read(root, ())
    return document


def _too_deep(text: str) -> int | None:
    """The line where the text is nested deeper than MAX_DEPTH. Composing such a text can overflow the C stack."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            return event.start_mark.line + 1 if event.start_mark else 1
    return None


class _Reader:
    """Turns composed nodes into data, and notes lines and mistakes on the way."""

    def __init__(self, document: YamlDocument) -> None:
        self._document = document
        self._constructor = yaml.constructor.SafeConstructor()
        self._seen: set[int] = set()

    def read(self, node: yaml.Node, path: Path) -> Any:
        line = self._document.lines.setdefault(path, node.start_mark.line + 1)  # the line of its name, if it has one
        if id(node) in self._seen:
            return self._fail(line, path, "aliases (*name) are not supported; write the text again")
        self._seen.add(id(node))
        match node:
            case yaml.MappingNode(tag=tag) if tag == f"{_TAG}map":
                return self._read_mapping(node, path)
            case yaml.SequenceNode(tag=tag) if tag == f"{_TAG}seq":
                return [self.read(item, (*path, i)) for i, item in enumerate(node.value)]
            case yaml.ScalarNode():
                return self._read_scalar(node, path)
        return self._fail(line, path, f"tag {node.tag} is not supported; remove it")

    def _read_mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        data: dict[str, Any] = {}
        first_lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self._fail(line, path, "a name must be a plain text")
                continue
            key = key_node.value
            if key_node.tag != f"{_TAG}str":
                self._fail(line, (*path, key), f'YAML does not read this name as text; write "{key}" in quotes')
                continue
            if key in first_lines:
                first = first_lines[key]
                self._fail(line, (*path, key), f"stands here twice, first in line {first}; remove one")
                continue
            first_lines[key] = line
            self._document.lines[(*path, key)] = line
            data[key] = self.read(value_node, (*path, key))
        return data

    def _read_scalar(self, node: yaml.ScalarNode, path: Path) -> Any:
        if node.tag == f"{_TAG}str":
            return node.value
        self._document.raw[path] = node.value
        match node.tag.removeprefix(_TAG):
            case "null":
                return None
            case "bool":
                return self._constructor.construct_yaml_bool(node)
            case "int" | "float" | "timestamp" as tag:
                try:
                    return getattr(self._constructor, f"construct_yaml_{tag}")(node)
                except (ValueError, OverflowError):
                    return self._fail(
                        node.start_mark.line + 1, path, f'"{node.value[:40]}" is no valid {tag}; quote it'
                    )
        return self._fail(node.start_mark.line + 1, path, f"tag {node.tag} is not supported; remove it")

    def _fail(self, line: int, path: Path, message: str) -> None:
        self._document.errors.append(SourceError(line, path, message))
