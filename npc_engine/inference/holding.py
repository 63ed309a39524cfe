"""References to cached blocks."""

from __future__ import annotations

from collections.abc import Iterable

from npc_engine.blocks import Block, BlockCache, BlockId


class Holding:
    """The blocks that somebody needs for a while, each held once, whatever they are asked for."""

    def __init__(self, cache: BlockCache) -> None:
        self._cache = cache
        self._held: dict[BlockId, Block] = {}

    def hold(self, blocks: Iterable[Block]) -> tuple[Block, ...]:
        """Hold these blocks, bringing them from disk if need be. Returns those that are missing, each once.

        Raises :class:`~npc_engine.errors.BlockMemoryError`; what was held before stays held.
        """
        wanted = {block.id: block for block in blocks if block.id not in self._held}
        missing = self._cache.acquire(wanted.values())
        for block in missing:
            del wanted[block.id]
        self._held |= wanted
        return missing

    def release(self) -> None:
        """Give all references back."""
        self._cache.release(self._held.values())
        self._held.clear()
