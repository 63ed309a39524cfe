"""What the bridge needs from below (an engine) and from above (a socket); both have doubles in the tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from npc_engine.config import SamplingParams
from npc_engine.runtime.reply import ReplyStream


class NpcInfo(Protocol):
    """An NPC as a game lists it. `place` is the id of where it is."""

    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def role(self) -> str: ...
    @property
    def place(self) -> str: ...


class WorldInfo(Protocol):
    """The world that is loaded."""

    @property
    def id(self) -> str: ...
    @property
    def title(self) -> str: ...


class ModelInfo(Protocol):
    """The model that speaks. `fingerprint` tells two checkpoints of one name apart."""

    @property
    def name(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def dtype(self) -> str: ...


class WorldChange(Protocol):
    """What a change did: when it took effect, which entities it touched, how many blocks have new text."""

    @property
    def tick(self) -> int: ...
    @property
    def entities(self) -> tuple[str, ...]: ...
    @property
    def num_changed_blocks(self) -> int: ...


class Engine(Protocol):
    """The engine as the bridge sees it.

    The bridge calls `patch`, `advance` and `say` in the order in which a client's requests arrived and does not wait
    in between. Changes take effect in the order of the calls, and a `say` is answered from the world that the changes
    called before it leave.
    """

    @property
    def world_info(self) -> WorldInfo: ...
    @property
    def model_info(self) -> ModelInfo: ...
    @property
    def tick(self) -> int: ...

    def npcs(self) -> tuple[NpcInfo, ...]: ...

    def say(
        self, npc: str, text: str, *, player: str = "player", sampling: SamplingParams | None = None
    ) -> ReplyStream:
        """Begin a reply. Raises UnknownNameError or UtteranceError at once."""
        ...

    async def patch(self, operations: list[dict[str, Any]]) -> WorldChange:
        """Apply a JSON Patch as a whole or raise PatchError and change nothing."""
        ...

    async def advance(self, minutes: int) -> WorldChange:
        """Let game time pass."""
        ...

    def subscribe(self) -> AbstractAsyncContextManager[AsyncIterator[WorldChange]]:
        """Changes from now on. Bounded: what a slow subscriber did not fetch is merged."""
        ...


class Socket(Protocol):
    """One WebSocket as the connection uses it.

    `recv` and `send` raise ``websockets.exceptions.ConnectionClosed`` once it is closed, by either side.
    """

    async def recv(self) -> str | bytes: ...
    async def send(self, frame: str | bytes) -> None: ...
    async def close(self, code: int, reason: str) -> None:
        """Do the closing handshake and wait for it. May hang when the peer reads nothing: then :meth:`abort`."""
        ...

    def abort(self) -> None:
        """Drop the transport at once; frames not yet sent are lost."""
        ...
