"""Running commands: in this process for speed, in their own where a process is the point."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from npc_engine.cli.main import app

ROOT = Path(__file__).resolve().parents[2]
NINESTEP = str(ROOT / "worlds" / "ninestep")


def invoke(*arguments: object, stdin: str = "") -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(app, [str(each) for each in arguments], input=stdin)


def succeed(*arguments: object, stdin: str = "") -> Result:
    """Run a command that must end with 0."""
    result = invoke(*arguments, stdin=stdin)
    assert result.exit_code == 0, result.output
    return result


def last_json(stdout: str) -> dict[str, Any]:
    """What ``| tail -1`` gives a program."""
    value = json.loads(stdout.splitlines()[-1])
    assert isinstance(value, dict)
    return value


def error_line(result: Result) -> str:
    """The one line on standard error that a mistake gets; nothing else was printed."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if not line.startswith("loading ")]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("npc-engine: error: ")
    return lines[0]


def spawn(*arguments: object, env: Mapping[str, str] | None = None, **options: Any) -> subprocess.Popen[str]:
    """Start a command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "npc_engine.cli.main", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | dict(env or {}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        **options,
    )


def run_process(*arguments: object, env: Mapping[str, str] | None = None) -> str:
    """Run a command in a process of its own; returns its standard output."""
    process = spawn(*arguments, env=env)
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    return stdout
