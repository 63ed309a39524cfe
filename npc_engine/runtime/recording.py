"""Recordings: what went into a session, and what came out, as JSON Lines.

::

    {"kind": "header", ...}   versions, world, model, seed, and the settings that layouts depend on
    {"kind": "tick", ...}     a tick that had inputs: the inputs, what changed, the prompts that became due
    {"kind": "reply", ...}    a reply that has ended, with its tokens; a later tick takes it in
    {"kind": "end", ...}      missing when the process that wrote it was stopped

:mod:`~npc_engine.runtime.recorder` writes each line as it happens, so that a crash loses at most the last one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from pydantic import ValidationError

from npc_engine.errors import RecordingError
from npc_engine.runtime.recording_lines import FORMAT_VERSION, LINE, End, Header, Line, RecordedReply, Tick

FILE_NAME: Final = "recording.jsonl"


class Numbered(NamedTuple):
    """A line and where it stands in the file, from 1."""

    number: int
    line: Tick | RecordedReply


@dataclass(frozen=True, slots=True)
class Recording:
    """A recording as read. `damage` says in one line what is missing at its end, or is None."""

    path: Path
    header: Header
    lines: tuple[Numbered, ...]
    end: End | None
    damage: str | None

    @property
    def ticks(self) -> Iterator[Tick]:
        return (line for _, line in self.lines if isinstance(line, Tick))

    @property
    def replies(self) -> Iterator[RecordedReply]:
        return (line for _, line in self.lines if isinstance(line, RecordedReply))


def recording_file(path: Path) -> Path:
    """The recording in a demo's folder, or the file itself."""
    return path / FILE_NAME if path.is_dir() else path


def read_recording(path: Path) -> Recording:
    """Read a demo's folder or a file. A last line that was cut off is left out and reported in `damage`.

    Raises :class:`RecordingError`, which names file, line and field.
    """
    path = recording_file(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RecordingError(f"{path}: {error.strerror or error}; give a demo's folder or a recording") from error
    *whole, rest = content.split(b"\n")
    damage = None
    numbered = list(enumerate(whole, start=1))
    if rest:
        try:
            LINE.validate_json(rest)
            numbered.append((len(whole) + 1, rest))
        except ValidationError:
            damage = f"{path}:{len(whole) + 1}: the last line was cut off and is left out"
    if not numbered:
        raise RecordingError(f"{path}:1: no header; this is not a recording")
    header = _read_header(path, numbered[0][1])
    lines: list[Numbered] = []
    end: End | None = None
    for number, text in numbered[1:]:
        line = _read_line(path, number, text)
        if end is not None:
            raise RecordingError(f"{path}:{number}: a line behind the end; delete it")
        match line:
            case Header():
                raise RecordingError(f"{path}:{number}: a second header; split the file into two recordings")
            case End():
                end = line
            case _:
                lines.append(Numbered(number, line))
    if end is None and damage is None:
        damage = f"{path}:{len(numbered)}: the recording stops here without an end: its process was stopped"
    return Recording(path, header, tuple(lines), end, damage)


def _read_header(path: Path, text: bytes) -> Header:
    # The version decides whether the fields mean anything, so it is read first and by itself.
    try:
        raw = json.loads(text)
        is_header = raw["kind"] == "header"
        format_version = raw["format"]
    except (ValueError, TypeError, KeyError, RecursionError):
        is_header = False
    if not is_header:
        raise RecordingError(f"{path}:1: no header; this is not a recording")
    if format_version != FORMAT_VERSION:
        raise RecordingError(
            f"{path}:1: format: {format_version!r:.40} is not what this release reads ({FORMAT_VERSION}); "
            "update npc-engine, or record again"
        )
    line = _read_line(path, 1, text)
    assert isinstance(line, Header)
    return line


def _read_line(path: Path, number: int, text: bytes) -> Line:
    try:
        return LINE.validate_json(text)
    except ValidationError as error:
        details = error.errors(include_url=False)[0]
        # A tagged union puts the tag in front of the fields: (tick, inputs, 0, say, text).
        kinds = {"header", "tick", "reply", "end", "patch", "pass_time", "say", "reply_ended"}
        field = ".".join(
            str(part) for i, part in enumerate(details["loc"]) if not (part in kinds and _is_tag(details["loc"], i))
        )
        message = details["msg"][0].lower() + details["msg"][1:]
        raise RecordingError(f"{path}:{number}: {field + ': ' if field else ''}{message}") from None


def _is_tag(location: tuple[int | str, ...], index: int) -> bool:
    return index == 0 or isinstance(location[index - 1], int)
