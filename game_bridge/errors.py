"""Errors of the bridge, below the tree of :mod:`npc_engine.errors`.

::

    UserError
    └── BridgeError               anything between a game and the engine
        ├── ListenError           the server can't or won't listen there
        ├── DecodeError           a frame that is not a message of this protocol
        ├── ConnectError          the client did not get as far as a welcome
        ├── RequestError          the server answered one request with an error
        └── ConnectionLostError   the session ended while an answer was awaited
"""

from __future__ import annotations

from npc_engine.errors import UserError


class BridgeError(UserError):
    """Base of what goes wrong between a game and the engine."""


class ListenError(BridgeError):
    """The server can't listen: address taken, unknown or public without a token. The message names the option."""


class DecodeError(BridgeError):
    """A frame that is not a message of this protocol.

    `code` is what the ``error`` message carries (:class:`game_bridge.messages.ErrorCode`), `request_id` the id of the
    request where the frame was whole enough to tell.
    """

    def __init__(self, code: str, message: str, request_id: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.request_id = request_id


class ConnectError(BridgeError):
    """The client did not get as far as a welcome. `close_code` is the server's, where it gave one."""

    def __init__(self, message: str, close_code: int | None = None) -> None:
        super().__init__(message)
        self.close_code = close_code


class RequestError(BridgeError):
    """A request was refused, by the server or on the way to it; the session goes on.

    `code` tells what a program can do about it.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class ConnectionLostError(BridgeError):
    """The session ended while an answer was awaited. `close_code` is the server's, where it gave one."""

    def __init__(self, message: str, close_code: int | None = None) -> None:
        super().__init__(message)
        self.close_code = close_code
