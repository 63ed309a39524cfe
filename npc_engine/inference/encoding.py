"""Encoding blocks: one packed forward pass over all blocks that changed, which can stop between layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from npc_engine.blocks import Block, BlockCache, BlockId, BlockKV, Layout
from npc_engine.errors import BlockMemoryError
from npc_engine.inference.context_kind import ContextKind, EncodingContext
from npc_engine.inference.decoder import Decoder


class EncodingJob:
    """Encodes a batch of blocks, each behind its own parents and blind to the others.

    `parents` gives every parent by its id; they have to be held in the cache until the job is done. Tokens are packed
    without padding; a block's keys end up rotated for its local positions, the ones behind its parents.
    """

    def __init__(
        self,
        decoder: Decoder,
        kind: ContextKind,
        blocks: Sequence[Block],
        parents: Mapping[BlockId, Block],
    ) -> None:
        self.blocks = tuple(blocks)
        self.parents = tuple(parents.values())
        self._decoder = decoder
        self._contexts: list[EncodingContext] = []
        try:
            for block in blocks:
                layout = Layout.of([parents[parent] for parent in block.parents])
                self._contexts.append(kind.encoding_context(layout, block.num_tokens))
        except BlockMemoryError:
            self.close()
            raise
        step = kind.step(self._contexts, [block.token_ids for block in blocks])
        self._attention = step.attention
        self._hidden = decoder.embed(step.token_ids)
        self._next_layer = 0

    @property
    def num_tokens(self) -> int:
        return sum(block.num_tokens for block in self.blocks)

    @property
    def is_done(self) -> bool:
        return self._next_layer == self._decoder.config.num_layers

    def advance(self) -> None:
        """Run one layer."""
        self._hidden = self._decoder.layer(self._next_layer, self._hidden, self._attention)
        self._next_layer += 1
        if self.is_done:
            for block, context in zip(self.blocks, self._contexts, strict=True):
                context.advance(block.num_tokens)

    def results(self) -> list[tuple[Block, BlockKV]]:
        """The blocks with their keys and values, once the job is done."""
        assert self.is_done
        return [(block, context.new_kv) for block, context in zip(self.blocks, self._contexts, strict=True)]

    def close(self) -> None:
        """Give back what the job took."""
        for context in self._contexts:
            context.close()
        self._contexts = []


class EncodingQueue:
    """Encoding jobs that have begun. Only one advances at a time; the others are suspended between two layers."""

    def __init__(self, decoder: Decoder, kind: ContextKind, cache: BlockCache) -> None:
        self._decoder = decoder
        self._kind = kind
        self._cache = cache
        self._jobs: list[EncodingJob] = []  # the most urgent last

    def __bool__(self) -> bool:
        return bool(self._jobs)

    def ask_for(self, missing: Sequence[Block], known: Iterable[Block]) -> None:
        """Have some of these blocks encoded next, by a job that has begun or a new one.

        `missing`: parents before children; `known` holds all their parents, which are in memory unless they are
        missing, too.
        """
        absent = {block.id for block in missing}
        for job in self._jobs:
            if not absent.isdisjoint(block.id for block in job.blocks):
                self._jobs.remove(job)
                self._jobs.append(job)
                return
        wave = ready_to_encode(missing, self._kind.max_encoding_tokens)
        by_id = {block.id: block for block in known}
        parents = {parent: by_id[parent] for block in wave for parent in block.parents}
        lost = self._cache.acquire(parents.values())
        assert not lost, "a block is ready when its parents are"
        try:
            self._jobs.append(EncodingJob(self._decoder, self._kind, wave, parents))
        except BlockMemoryError:
            self._cache.release(parents.values())
            raise

    def abandon(self) -> bool:
        """Give up all jobs that have begun, and what they hold. False if there are none."""
        jobs, self._jobs = self._jobs, []
        for job in jobs:
            job.close()
            self._cache.release(job.parents)
        return bool(jobs)

    def advance(self) -> None:
        """Run one layer of the most urgent job; after the last one its blocks are cached.

        Raises :class:`~npc_engine.errors.BlockMemoryError` if they don't fit; the job is over then, too.
        """
        job = self._jobs[-1]
        job.advance()
        if job.is_done:
            self._jobs.pop()
            self._cache.release(job.parents)
            results = job.results()
            job.close()
            for block, kv in results:
                self._cache.put(block, kv)


def ready_to_encode(missing: Sequence[Block], max_tokens: int) -> list[Block]:
    """The first wave of `missing` (parents before children): blocks without a missing parent.

    Up to `max_tokens` tokens of them, but at least one block.
    """
    absent = {block.id for block in missing}
    wave: list[Block] = []
    num_tokens = 0
    for block in missing:
        if any(parent in absent for parent in block.parents):
            continue
        if wave and num_tokens + block.num_tokens > max_tokens:
            break
        wave.append(block)
        num_tokens += block.num_tokens
    return wave
