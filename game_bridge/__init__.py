"""The bridge: games talk to an engine over WebSockets. `docs/protocol.md` is the wire format.

Server: :class:`BridgeServer`. Client: :func:`connect`. Everything else is behind them and may move.
"""

from game_bridge.client import Bridge, Speech, connect
from game_bridge.errors import (
    BridgeError,
    ConnectError,
    ConnectionLostError,
    DecodeError,
    ListenError,
    RequestError,
)
from game_bridge.limits import Limits
from game_bridge.messages import PROTOCOL_VERSION, CloseCode, ErrorCode, Sampling
from game_bridge.ports import Engine
from game_bridge.server import DEFAULT_HOST, DEFAULT_PORT, BridgeServer

__all__ = [
    "DEFAULT_HOST",
    "DEFAULT_PORT",
    "PROTOCOL_VERSION",
    "Bridge",
    "BridgeError",
    "BridgeServer",
    "CloseCode",
    "ConnectError",
    "ConnectionLostError",
    "DecodeError",
    "Engine",
    "ErrorCode",
    "Limits",
    "ListenError",
    "RequestError",
    "Sampling",
    "Speech",
    "connect",
]
