"""The listening side: accepts clients, owns their connections, closes them."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import secrets
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.typing import Subprotocol

from game_bridge.codec import CODECS
from game_bridge.connection import Connection
from game_bridge.errors import ListenError
from game_bridge.limits import Limits
from game_bridge.messages import CloseCode
from game_bridge.ports import Engine
from npc_engine.config import SamplingParams

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8765


def check_address(host: str, port: int, token: str | None) -> None:
    """Raise :class:`ListenError` for an address that must not be listened on, or an empty token."""
    if token is not None and not token.strip():
        raise ListenError("the token is empty: put a secret into the file that --token-file names")
    if token is None and not _is_loopback(host):
        raise ListenError(
            f"{host or 'every address'} can be reached from other machines: give a token with --token-file, "
            f"or listen on {DEFAULT_HOST}"
        )
    if not 0 <= port <= 65535:
        raise ListenError(f"--port {port} is not between 0 and 65535")


class BridgeServer:
    """Serves an engine over WebSockets::

        async with BridgeServer(engine, port=8765) as server:
            await server.serve_forever()

    `port` 0 takes a free one; see :attr:`port`. `token` is the secret that clients must show; without one the server
    listens on this machine only. `sampling` is what a ``say`` without overrides gets. The engine is not closed.

    Raises:
        ListenError: on a public address without a token (at once), or one that can't be listened on (at start).
    """

    def __init__(
        self,
        engine: Engine,
        *,
        host: str = DEFAULT_HOST,
        port: int = DEFAULT_PORT,
        token: str | None = None,
        limits: Limits | None = None,
        sampling: SamplingParams | None = None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        check_address(host, port, token)
        self._engine = engine
        self._host = host
        self._port = port
        self._token = token
        self._limits = limits or Limits()
        self._sampling = sampling or SamplingParams()
        self._now_s = now_s
        self._server: Server | None = None
        self._connections: set[Connection] = set()
        self._closing = False
        self._closed = asyncio.Event()

    @property
    def port(self) -> int:
        """The port it listens on; the one asked for before the start."""
        if self._server is None or not self._server.sockets:
            return self._port
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    @property
    def url(self) -> str:
        """What a client on this machine connects to."""
        host = DEFAULT_HOST if self._host in ("", "0.0.0.0") else "::1" if self._host == "::" else self._host
        return f"ws://[{host}]:{self.port}" if ":" in host else f"ws://{host}:{self.port}"

    @property
    def num_connections(self) -> int:
        return len(self._connections)

    async def start(self) -> None:
        """Listen. Call once. Raises ListenError."""
        assert self._server is None, "a server starts once"
        try:
            self._server = await serve(
                self._serve_client,
                self._host,
                self._port,
                subprotocols=[Subprotocol(name) for name in CODECS],
                compression=None,  # deltas are tens of bytes: deflate would cost time and 100 KB a connection
                max_size=self._limits.max_message_bytes,
                close_timeout=self._limits.close_timeout_s,
                server_header=None,
            )
        except OSError as error:
            raise ListenError(_why_not(error, self._host, self._port)) from error

    async def serve_forever(self) -> None:
        """Wait until the server was closed. Cancelling the wait does not close it: ``async with`` does."""
        await self._closed.wait()

    async def close(self, code: int = CloseCode.GOING_AWAY, reason: str = "the server is shutting down") -> None:
        """Stop listening, close every connection with this code, wait for their tasks. Idempotent."""
        self._closing = True
        if self._server is not None:
            self._server.close(close_connections=False)
            await asyncio.gather(*(connection.close(code, reason) for connection in self._connections))
            await self._server.wait_closed()
        self._closed.set()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _serve_client(self, websocket: ServerConnection) -> None:
        if self._closing:
            return  # its handshake ended while we closed the others
        assert websocket.subprotocol is not None, "websockets refuses clients that offer none of ours"
        connection = Connection(
            _WebSocket(websocket),
            self._engine,
            CODECS[websocket.subprotocol],
            session_id=secrets.token_hex(8),
            limits=self._limits,
            token=self._token,
            sampling=self._sampling,
            now_s=self._now_s,
        )
        self._connections.add(connection)
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)


class _WebSocket:
    """A websockets connection as a :class:`game_bridge.ports.Socket`."""

    def __init__(self, websocket: ServerConnection) -> None:
        self._websocket = websocket

    async def recv(self) -> str | bytes:
        return await self._websocket.recv()

    async def send(self, frame: str | bytes) -> None:
        await self._websocket.send(frame)

    async def close(self, code: int, reason: str) -> None:
        await self._websocket.close(code, reason)

    def abort(self) -> None:
        self._websocket.transport.abort()


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name, or every address: may be public


def _why_not(error: OSError, host: str, port: int) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"port {port} on {host} is in use: stop the other program or choose another port with --port"
        case errno.EACCES:
            return f"port {port} on {host} needs more rights: choose one above 1023 with --port"
        case _:
            return f"can't listen on {host} port {port} (--host, --port): {error.strerror or error}"
