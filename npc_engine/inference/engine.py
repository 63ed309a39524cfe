"""The inference engine: one step at a time, urgent work first. For one thread; knows neither threads nor clocks."""

from __future__ import annotations

import collections.abc
import contextlib
from collections.abc import Hashable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from npc_engine.blocks import Block, BlockCache, BlockId, CacheStats, Layout, Tier
from npc_engine.errors import BlockMemoryError, ContextOverflowError
from npc_engine.inference.attention import BatchAttention
from npc_engine.inference.context import AssembledContext
from npc_engine.inference.context_pool import ContextPool
from npc_engine.inference.encoding import EncodingJob, ready_to_encode
from npc_engine.inference.model import Model
from npc_engine.inference.request import (
    FailedOutput,
    FinishReason,
    GenerationRequest,
    Output,
    TokenOutput,
    WarmedOutput,
)
from npc_engine.inference.sampler import margin
from npc_engine.inference.sequence import Phase, Sequence

_MAX_ENCODING_TOKENS = 1024  # of one packed batch
_MAX_BLOCKS_PER_FLUSH = 8  # bounds the time that a write to disk can keep a player waiting


class WarmUp(NamedTuple):
    """Blocks that will be wanted soon, and the conversation whose context should hold them."""

    blocks: tuple[Block, ...]
    turns: tuple[Block, ...] = ()
    conversation: Hashable = None


class InferenceEngine:
    """Generates replies over cached blocks.

    Each :meth:`step` does the most urgent small piece of work and returns what came of it:

    1. one layer of encoding the blocks that the most urgent waiting request misses, or its final block;
    2. one token for every reply that is being spoken, in one batch;
    3. in idle time, one layer of encoding blocks that were asked for by :meth:`warm`; then placing them; then writing
       them to disk.

    So a player waits for one layer of background work at most, and a cancelled reply ends within one decode step.
    """

    def __init__(self, model: Model, cache: BlockCache, *, max_context_memory: int) -> None:
        self._model = model
        self._cache = cache
        self._waiting: list[Sequence] = []
        self._running: list[Sequence] = []
        self._jobs: list[EncodingJob] = []  # the last one is the most urgent; those before it are suspended
        self._warm_ups: dict[Hashable, WarmUp] = {}
        self._contexts = ContextPool(self._new_context, max_context_memory)

    @property
    def has_work(self) -> bool:
        """False when :meth:`step` would do nothing."""
        return bool(self._waiting or self._running or self._jobs or self._warm_ups or self._cache.stats().num_unwritten)

    # ── what callers ask for ─────────────────────────────────────────────────────────────────────────────────

    def submit(self, request: GenerationRequest) -> None:
        """Queue a request. A conversation has at most one at a time."""
        self._waiting.append(Sequence(request))
        self._waiting.sort(key=lambda sequence: sequence.request.priority)  # stable: first come, first served within

    def cancel(self, request_id: int) -> None:
        """End a request at the next step. Unknown and finished ones are passed over."""
        for sequence in (*self._waiting, *self._running):
            if sequence.request.request_id == request_id:
                sequence.is_cancelled = True

    def warm(self, key: Hashable, warm_up: WarmUp) -> None:
        """Encode and place these blocks in idle time. A later warm-up of the same key supersedes an earlier one."""
        self._warm_ups[key] = warm_up

    def tiers(self, blocks: Iterable[Block]) -> tuple[Tier, ...]:
        """Where each block is now."""
        return tuple(self._cache.tier(block) for block in blocks)

    def full_prefill(self, token_ids: tuple[int, ...]) -> int:
        """The baseline:

        compute this whole prompt with full attention, nothing cached. Returns the likeliest next token.
        """
        with torch.inference_mode():
            return int(self._forward([self._new_context()], [token_ids])[-1].argmax())

    def flush(self) -> None:
        """Write every block that is not on disk yet."""
        self._cache.flush()

    def cache_stats(self) -> CacheStats:
        return self._cache.stats()

    def close(self) -> None:
        """Write what is left and close the store. Idempotent."""
        self._cache.close()

    # ── one step ─────────────────────────────────────────────────────────────────────────────────────────────

    def step(self) -> list[Output]:
        """Do one piece of work. Returns tokens, ended and failed replies; often nothing."""
        with torch.inference_mode():
            outputs = self._end_cancelled()
            if (sequence := self._next_waiting()) is not None:
                outputs += self._admit(sequence)
            elif self._running:
                outputs += self._decode()
            else:
                outputs += self._idle()
            return outputs

    def _next_waiting(self) -> Sequence | None:
        for sequence in self._waiting:
            if not self._contexts.is_busy(sequence.request.conversation):
                return sequence
        return None

    def _end_cancelled(self) -> list[Output]:
        cancelled = [sequence for sequence in (*self._waiting, *self._running) if sequence.is_cancelled]
        return [self._finish(sequence, FinishReason.CANCELLED) for sequence in cancelled]

    def _admit(self, sequence: Sequence) -> list[Output]:
        """Bring a waiting request one piece closer to its first token."""
        try:
            if missing := self._hold(sequence):
                self._advance(self._job_for(missing, sequence.request.blocks))
                return []
            return self._prefill(sequence)
        except (BlockMemoryError, ContextOverflowError) as error:
            self._remove(sequence)
            sequence.move_to(Phase.FINISHED)
            return [FailedOutput(sequence.request.request_id, error)]

    def _hold(self, sequence: Sequence) -> tuple[Block, ...]:
        """Hold the request's blocks; returns those that have to be encoded first."""
        request = sequence.request
        wanted = [block for block in request.blocks if block.id not in sequence.held]
        missing = self._cache.acquire(wanted)
        absent = {block.id for block in missing}
        sequence.held |= {block.id: block for block in wanted if block.id not in absent}
        sequence.encoded |= {block.id: block for block in missing}
        return missing

    def _job_for(self, missing: collections.abc.Sequence[Block], known: Iterable[Block]) -> EncodingJob:
        """The job that encodes some of these blocks:

        one that has begun, or a new one. It goes in front of the others.
        """
        absent = {block.id for block in missing}
        for job in self._jobs:
            if not absent.isdisjoint(block.id for block in job.blocks):
                self._jobs.remove(job)
                self._jobs.append(job)
                return job
        by_id = {block.id: block for block in known}
        wave = ready_to_encode(missing, _MAX_ENCODING_TOKENS)
        parents = {parent: by_id[parent] for block in wave for parent in block.parents}
        lost = self._cache.acquire(parents.values())
        assert not lost, "a block is ready when its parents are"
        job = EncodingJob(self._model.decoder, self._model.rope, self._cache, wave, parents)
        self._jobs.append(job)
        return job

    def _advance(self, job: EncodingJob) -> None:
        """Run one layer; when it was the last, cache the blocks."""
        job.advance()
        if job.is_done:
            self._jobs.remove(job)
            self._cache.release(job.parents)
            for block, kv in job.results():
                self._cache.put(block, kv)

    def _prefill(self, sequence: Sequence) -> list[Output]:
        request = sequence.request
        context = self._contexts.peek(request.conversation)
        self._fold_lost_turns(sequence, context)
        layout, tail, forced = sequence.layout, sequence.tail, request.forced_token_ids
        num_tokens = layout.num_tokens + len(tail) + max(request.sampling.max_tokens, len(forced))
        if num_tokens > self._model.config.max_position_embeddings:
            raise ContextOverflowError(
                f"the prompt and its reply need {num_tokens} tokens, {self._model.name} has "
                f"{self._model.config.max_position_embeddings}; lower max_context_tokens"
            )
        context = self._contexts.take(request.conversation)
        context.place(layout, self._cache.get)
        self._release(sequence)
        self._waiting.remove(sequence)
        self._running.append(sequence)
        sequence.start(context)
        if forced:
            return [self._force(sequence, forced)]
        return self._sample([sequence], self._forward([context], [tail]))

    def _fold_lost_turns(self, sequence: Sequence, context: AssembledContext | None) -> None:
        """Turns are needed where the context does not hold them in place; from the first one that is lost, they are
        folded.
        """
        layout = sequence.layout
        stale = {p.block.id for p in (context.stale(layout) if context is not None else layout.placements)}
        for index, turn in enumerate(sequence.request.turns):
            if turn.id not in stale:
                continue
            if self._cache.acquire([turn]):
                sequence.fold_turns_from(index)
                return
            sequence.held[turn.id] = turn

    def _decode(self) -> list[Output]:
        sequences = list(self._running)
        logits = self._forward(
            [sequence.context for sequence in sequences], [sequence.sampled_token_ids[-1:] for sequence in sequences]
        )
        return self._sample(sequences, logits)

    def _sample(self, sequences: list[Sequence], logits: Tensor) -> list[Output]:
        """logits: [sequences, vocab]."""
        outputs: list[Output] = []
        for sequence, row in zip(sequences, logits, strict=True):
            token_id = sequence.sample(row)
            reason = sequence.finish_reason()
            if reason is not FinishReason.STOP:
                outputs.append(TokenOutput(sequence.request.request_id, token_id))
            if reason is not None:
                outputs.append(self._finish(sequence, reason))
        return outputs

    def _force(self, sequence: Sequence, forced: tuple[int, ...]) -> Output:
        """Feed a recorded reply back in one pass."""
        token_ids = (*sequence.tail, *forced[:-1])
        logits = self._forward([sequence.context], [token_ids], num_rows=len(forced))
        sequence.margins = tuple(margin(logits, forced).tolist())
        sequence.sampled_token_ids = list(forced)
        return self._finish(sequence, sequence.finish_reason() or FinishReason.CANCELLED)

    def _finish(self, sequence: Sequence, reason: FinishReason) -> Output:
        self._remove(sequence)
        if sequence.phase is Phase.WAITING:
            return sequence.finished(reason, turn=None)
        computed = (*sequence.tail, *sequence.sampled_token_ids[:-1])
        turn = Block.behind(self._model.identity, sequence.layout.blocks, computed)
        kv = sequence.context.seal(turn)
        self._contexts.put_back(sequence.request.conversation)
        with contextlib.suppress(BlockMemoryError):  # the context has it, and the next reply can compute it again
            self._cache.put(turn, kv)
        return sequence.finished(reason, turn)

    def _remove(self, sequence: Sequence) -> None:
        self._release(sequence)
        queue = self._waiting if sequence.phase is Phase.WAITING else self._running
        queue.remove(sequence)

    def _release(self, sequence: Sequence) -> None:
        self._cache.release(sequence.held.values())
        sequence.held.clear()

    # ── idle time ────────────────────────────────────────────────────────────────────────────────────────────

    def _idle(self) -> list[Output]:
        try:
            if self._jobs:
                self._advance(self._jobs[-1])
            elif self._warm_ups:
                return self._warm()
            else:
                self._cache.flush(_MAX_BLOCKS_PER_FLUSH)
        except BlockMemoryError:
            # Warming is a courtesy: with no room left, the blocks wait until an utterance needs them.
            given_up = list(self._warm_ups)
            self._warm_ups.clear()
            return [WarmedOutput(key) for key in given_up]
        return []

    def _warm(self) -> list[Output]:
        """Start one batch over everything that is missing, and place what is complete."""
        outputs: list[Output] = []
        missing: dict[BlockId, Block] = {}
        known: dict[BlockId, Block] = {}
        for key, warm_up in list(self._warm_ups.items()):
            absent = self._cache.acquire(warm_up.blocks)
            absent_ids = {block.id for block in absent}
            self._cache.release(block for block in warm_up.blocks if block.id not in absent_ids)
            if absent:
                missing |= {block.id: block for block in absent}
                known |= {block.id: block for block in warm_up.blocks}
            else:
                self._place(self._warm_ups.pop(key))
                outputs.append(WarmedOutput(key))
        if missing:
            self._job_for(list(missing.values()), known.values())
        return outputs

    def _place(self, warm_up: WarmUp) -> None:
        """Bring the conversation's context up to date, if it has an idle one and nothing it needs was lost."""
        context = self._contexts.peek(warm_up.conversation)
        if context is None:
            return
        layout = Layout.of((*warm_up.blocks, *warm_up.turns))
        needed = [placement.block for placement in context.stale(layout)]
        lost_ids = {block.id for block in self._cache.acquire(needed)}
        held = [block for block in needed if block.id not in lost_ids]
        if not lost_ids:
            context.place(layout, self._cache.get)
        self._cache.release(held)

    # ── the model ────────────────────────────────────────────────────────────────────────────────────────────

    def _forward(
        self, contexts: list[AssembledContext], token_ids: Iterable[Iterable[int]], num_rows: int = 1
    ) -> Tensor:
        """One pass over a packed batch.

        Returns the logits of the last `num_rows` tokens of each sequence: [rows, vocab].
        """
        per_sequence = [list(ids) for ids in token_ids]
        lengths = [len(ids) for ids in per_sequence]
        attention = BatchAttention(self._model.rope, contexts, lengths)
        packed = torch.tensor([token_id for ids in per_sequence for token_id in ids], device=self._model.decoder.device)
        hidden = self._model.decoder.forward(packed, attention)
        attention.advance()
        ends = torch.tensor(lengths).cumsum(0).tolist()
        rows = torch.cat([hidden[end - num_rows : end] for end in ends])
        return self._model.decoder.logits(rows)

    def _new_context(self) -> AssembledContext:
        return AssembledContext(self._cache.shape, self._model.rope.inv_freq, self._model.decoder.device)
