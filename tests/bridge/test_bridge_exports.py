"""The public surface of the bridge."""

from __future__ import annotations

import game_bridge


def test_the_public_names_are_pinned() -> None:
    """What games import; everything behind it may move."""
    assert game_bridge.__all__ == [
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
    for name in game_bridge.__all__:
        assert getattr(game_bridge, name) is not None
