"""What commands print: text for people, one JSON object for programs, one line for a mistake."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from npc_engine.errors import ConfigError

_WIDTH_OF_A_PIPE: Final = 120  # rich would take 80 and fold tables that have room


def configure_streams() -> None:
    """Let no character end a command: what a console's encoding lacks is shown as ``?``, on Windows and in pipes."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def console(*, stderr: bool = False) -> Console:
    """A console on standard output, or on standard error."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(
        stderr=stderr, highlight=False, emoji=False, markup=False, width=None if stream.isatty() else _WIDTH_OF_A_PIPE
    )


def console_for_people(*, as_json: bool) -> Console:
    """Where people read: standard output, unless that belongs to the JSON."""
    return console(stderr=as_json)


def print_json(value: Mapping[str, Any]) -> None:
    """One object on one line of standard output, in ASCII, whatever the console can show."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def print_error(message: str) -> None:
    """``npc-engine: error: ...`` on one line of standard error."""
    sys.stderr.write(f"npc-engine: error: {printable(' '.join(message.split()))}\n")
    sys.stderr.flush()


def printable(text: str) -> str:
    """`text` without what could steer a terminal; line ends stay."""
    return "".join(char for char in text if char == "\n" or char.isprintable())


def well_formed(text: str) -> str:
    """A command-line argument as text that can be encoded: bytes that were none become ``?``."""
    return text.encode("utf-8", "replace").decode()


def check_writable(path: Path, option: str) -> None:
    """Raise :class:`ConfigError` if no file can be written at `path`."""
    try:
        path.open("a").close()
    except OSError as error:
        raise ConfigError(f"{option} {path}: can't be written ({error.strerror}); give another file") from error


def rounded(value: Any) -> Any:
    """Every float in dictionaries and lists, to three decimals."""
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, Mapping):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(each) for each in value]
    return value


def human_bytes(num_bytes: int) -> str:
    """``88.4 MiB``."""
    size = float(num_bytes)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
