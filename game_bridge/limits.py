"""What one connection may ask of the server."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of one connection. Sizes are in bytes, times in seconds.

    The first five are told to the client in its welcome. `max_outbox` is how many frames may wait for a client that
    reads slowly; then its replies wait in the engine and changes of the world are merged. A client that takes nothing
    off its socket for `send_timeout_s` is cut off.
    """

    max_message_bytes: int = 256 * 1024
    max_utterances: int = 8
    max_changes: int = 64
    messages_per_s: float = 100.0
    message_burst: int = 200
    max_outbox: int = 256
    hello_timeout_s: float = 10.0
    send_timeout_s: float = 20.0
    close_timeout_s: float = 5.0


class TokenBucket:
    """Allows `rate` takes a second on average and `burst` at once. Time is given, never read."""

    def __init__(self, rate: float, burst: int, now_s: float) -> None:
        self._rate = rate
        self._burst = float(burst)
        self._level = float(burst)
        self._filled_s = now_s

    def take(self, now_s: float) -> bool:
        """Take one if there is one."""
        self._level = min(self._burst, self._level + max(0.0, now_s - self._filled_s) * self._rate)
        self._filled_s = now_s
        if self._level < 1.0:
            return False
        self._level -= 1.0
        return True
