"""The folder where models are kept, shared by every process of a user.

::

    cache_dir/
      gguf/NAME.gguf                 fetched files, complete and checked
      converted/NAME-SHA-vN/         checkpoints converted from GGUF, complete
      hashes.json                    SHA-256 of files by path, size and time of change
      tmp/                           unfinished work; nothing reads it, old parts are removed

A name outside ``tmp`` appears only by a rename on the same file system, so it is complete or absent whatever
is killed when, and two processes that make the same thing only waste work.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

# Work touches its folder as it goes, so one that was not touched for this long belongs to a dead process.
_STALE_AFTER_S: Final = 3600.0


class ModelCache:
    """Access to one cache folder. Holds no state of its own: any number may be open on the same folder."""

    def __init__(self, cache_dir: Path) -> None:
        self.cache_dir = cache_dir.expanduser().absolute()

    def gguf_path(self, file_name: str) -> Path:
        return self.cache_dir / "gguf" / file_name

    def converted_path(self, name: str) -> Path:
        return self.cache_dir / "converted" / name

    @contextlib.contextmanager
    def scratch(self, label: str) -> Iterator[Path]:
        """An empty folder on the cache's file system, removed at the end, for work to be moved out of when complete.

        Removes what killed processes left there. Raises :class:`OSError` where the cache can't be written.
        """
        root = self.cache_dir / "tmp"
        root.mkdir(parents=True, exist_ok=True)
        _remove_stale(root)
        folder = Path(tempfile.mkdtemp(prefix=f"{label}-", dir=root))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def sha256(self, path: Path) -> str:
        """Hex SHA-256 of the file's bytes; remembered until its size or time of change differs."""
        path = path.absolute()
        stat = path.stat()
        known = self._read_hashes().get(str(path))
        if isinstance(known, list) and len(known) == 3 and known[:2] == [stat.st_size, stat.st_mtime_ns]:
            digest = known[2]
            if isinstance(digest, str) and len(digest) == 64:
                return digest
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        after = path.stat()
        if (after.st_size, after.st_mtime_ns) == (stat.st_size, stat.st_mtime_ns):
            self._remember(path, stat.st_size, stat.st_mtime_ns, digest)
        return digest

    def _read_hashes(self) -> dict[str, object]:
        try:
            hashes = json.loads((self.cache_dir / "hashes.json").read_bytes())
        except (OSError, ValueError):
            return {}  # missing or damaged: hashing again is all it costs
        return hashes if isinstance(hashes, dict) else {}

    def _remember(self, path: Path, size: int, mtime_ns: int, digest: str) -> None:
        # Two writers at once may lose an entry; the loser's file is hashed again next time. A cache that can't be
        # written only costs that, too.
        with contextlib.suppress(OSError), self.scratch("hashes") as folder:
            hashes = {name: entry for name, entry in self._read_hashes().items() if Path(name).exists()}
            hashes[str(path)] = [size, mtime_ns, digest]
            unfinished = folder / "hashes.json"
            unfinished.write_text(json.dumps(hashes, indent=1))
            unfinished.replace(self.cache_dir / "hashes.json")


def sync(path: Path) -> None:
    """Force the file's bytes, or a folder's entries, to the disk. Folders can't be synced on Windows: no-op there."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() or os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_stale(root: Path) -> None:
    oldest = time.time() - _STALE_AFTER_S
    for entry in root.iterdir():
        with contextlib.suppress(OSError):
            if entry.stat().st_mtime < oldest:
                shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink()
