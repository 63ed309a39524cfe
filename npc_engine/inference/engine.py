"""The inference engine: one step at a time, urgent work first. For one thread; knows neither threads nor clocks."""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from npc_engine.blocks import Block, BlockCache, BlockId, CacheStats, Tier
from npc_engine.errors import BlockMemoryError, ContextOverflowError, NpcEngineError
from npc_engine.inference.context import AssembledContext
from npc_engine.inference.context_kind import AssembledContexts, ContextKind
from npc_engine.inference.context_policy import ContextPolicy
from npc_engine.inference.context_pool import ContextPool, ConversationContext
from npc_engine.inference.encoding import EncodingQueue
from npc_engine.inference.holding import Holding
from npc_engine.inference.model import Network
from npc_engine.inference.relinking import Relinking
from npc_engine.inference.request import (
    FailedOutput,
    FinishReason,
    GenerationRequest,
    Output,
    Priority,
    TokenOutput,
    WarmedOutput,
)
from npc_engine.inference.sampler import Sampler, sample_all
from npc_engine.inference.sequence import Phase, Sequence


class WarmUp(NamedTuple):
    """Blocks that will be wanted soon, and the conversation whose context should hold them.

    One that somebody waits for goes first, and its conversation gets a context if it has none.
    """

    blocks: tuple[Block, ...]
    turns: tuple[Block, ...] = ()
    conversation: Hashable = None
    is_awaited: bool = False


@dataclass(slots=True)
class _Warming:
    warm_up: WarmUp
    holding: Holding
    missing: tuple[Block, ...] | None = None  # None: to be looked up


class InferenceEngine:
    """Generates replies over cached blocks.

    Each :meth:`step` does the most urgent small piece of work and returns what came of it:

    1. one layer of encoding the blocks that the most urgent waiting request misses, or its final block;
    2. one token for every reply that is being spoken, in one batch;
    3. in idle time, one layer of encoding blocks that were asked for by :meth:`warm`; then placing them.

    So a player waits for one layer of background work at most, and a cancelled reply ends within one decode step.
    Create it on the thread that will use it.
    """

    def __init__(
        self,
        model: Network,
        cache: BlockCache,
        *,
        max_context_memory: int,
        policy: ContextPolicy = ContextPolicy(),  # noqa: B008 - immutable
        kind: ContextKind | None = None,
    ) -> None:
        """`kind` None: an assembled context for every conversation. `policy` is for those."""
        torch.set_num_threads(model.num_threads)
        if model.decoder.device.type == "cuda":
            torch.cuda.set_device(model.decoder.device)  # kernels are launched on the thread's own device
        self._policy = policy
        self._model = model
        self._cache = cache
        self._waiting: list[Sequence] = []
        self._running: list[Sequence] = []
        self._warming: dict[Hashable, _Warming] = {}
        self._relinking: dict[Hashable, Relinking] = {}
        self._kind = kind or AssembledContexts(cache, model.rope, model.decoder.device, policy)
        self._forward = self._kind.forward_pass(model.decoder)
        self._encoding = EncodingQueue(model.decoder, self._kind, cache)
        self._contexts = ContextPool(self._kind.create, max_context_memory)

    @property
    def has_work(self) -> bool:
        """False when :meth:`step` would do nothing."""
        return bool(self._waiting or self._running or self._encoding or self._warming or self._relinking)

    def prepare(self, max_conversations: int = 8) -> float:
        """Compile and capture on a GPU what so many conversations at once need; otherwise their first replies wait for
        it. Returns the seconds it took."""
        return self._forward.prepare(max_conversations)

    # ── what callers ask for ─────────────────────────────────────────────────────────────────────────────────

    def submit(self, request: GenerationRequest) -> None:
        """Queue a request. A conversation has at most one at a time."""
        self._waiting.append(Sequence(request, Holding(self._cache), self._policy.arrange))
        self._waiting.sort(key=lambda sequence: sequence.request.priority)  # stable: first come, first served within

    def cancel(self, request_id: int) -> None:
        """End a request at the next step. Unknown and finished ones are passed over."""
        for sequence in (*self._waiting, *self._running):
            if sequence.request.request_id == request_id:
                sequence.is_cancelled = True

    def warm(self, key: Hashable, warm_up: WarmUp) -> None:
        """Encode and place these blocks in idle time. A later warm-up of the same key supersedes an earlier one."""
        if (superseded := self._warming.pop(key, None)) is not None:
            superseded.holding.release()
        self._warming[key] = _Warming(warm_up, Holding(self._cache))

    def tiers(self, blocks: Iterable[Block]) -> tuple[Tier, ...]:
        """Where each block is now."""
        return tuple(self._cache.tier(block) for block in blocks)

    def full_prefill(self, token_ids: tuple[int, ...]) -> int:
        """The baseline: this whole prompt with full attention, nothing cached. Returns the likeliest next token."""
        with torch.inference_mode():
            context = self._kind.create()
            try:
                return int(self._forward([context], [token_ids])[-1].argmax())
            finally:
                context.close()

    def pin(self, block: Block) -> None:
        """Keep a block in memory from the time it is there."""
        self._cache.pin(block)

    def flush(self) -> None:
        """Wait until every block is on disk; may be called from another thread."""
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
        """The most urgent request whose conversation is free, unless somebody more urgent is being answered."""
        bar = min((sequence.request.priority for sequence in self._running), default=max(Priority))
        for sequence in self._waiting:
            if sequence.request.priority <= bar and not self._contexts.is_busy(sequence.request.conversation):
                return sequence
        return None

    def _end_cancelled(self) -> list[Output]:
        cancelled = [sequence for sequence in (*self._waiting, *self._running) if sequence.is_cancelled]
        return [self._finish(sequence, FinishReason.CANCELLED) for sequence in cancelled]

    def _admit(self, sequence: Sequence) -> list[Output]:
        """Bring a waiting request one piece closer to its first token."""
        blocks = sequence.request.blocks
        try:
            if missing := sequence.holding.hold(blocks):
                sequence.encoded |= {block.id: block for block in missing}
                self._encoding.ask_for(missing, blocks)
                self._encoding.advance()
                return []
            return self._prefill(sequence)
        except BlockMemoryError as error:
            # Warm-ups and idle conversations hold memory, too. Somebody who speaks needs it more.
            if self._contexts.drop_oldest() or self._encoding.abandon():
                return []
            return self._give_up_warming() or self._fail(sequence, error)
        except ContextOverflowError as error:
            return self._fail(sequence, error)

    def _fail(self, sequence: Sequence, error: NpcEngineError) -> list[Output]:
        self._remove(sequence)
        sequence.move_to(Phase.FINISHED)
        return [FailedOutput(sequence.request.request_id, error)]

    def _prefill(self, sequence: Sequence) -> list[Output]:
        request = sequence.request
        context = self._contexts.peek(request.conversation)
        self._fold_lost_turns(sequence, context)
        layout, tail, forced = sequence.layout, sequence.tail, request.forced_token_ids
        num_tokens = layout.end + len(tail) + max(request.sampling.max_tokens, len(forced))
        if num_tokens > self._model.config.max_position_embeddings:
            raise ContextOverflowError(
                f"the prompt and its reply need {num_tokens} tokens, {self._model.name} has "
                f"{self._model.config.max_position_embeddings}; lower max_context_tokens"
            )
        self._relinking.pop(request.conversation, None)  # never on the path of an utterance
        context = self._contexts.take(request.conversation)
        try:
            context.place(layout, self._cache.get, room=num_tokens - layout.end)
        except BlockMemoryError:
            self._contexts.put_back(request.conversation)
            raise
        self._remove(sequence)
        self._running.append(sequence)
        sequence.start(context)
        if forced:
            return [self._force(sequence, forced)]
        return self._sample([sequence], self._forward([context], [tail]))

    def _fold_lost_turns(self, sequence: Sequence, context: ConversationContext | None) -> None:
        """Fold from the first turn that the context does not hold in place and the cache has lost."""
        layout = sequence.layout
        stale = {p.block.id for p in (context.stale(layout) if context is not None else layout.placements)}
        for index, turn in enumerate(sequence.request.turns):
            if turn.id not in stale:
                continue
            if sequence.holding.hold([turn]):
                sequence.fold_turns_from(index)
                return

    def _decode(self) -> list[Output]:
        sequences = list(self._running)
        logits = self._forward(
            [sequence.context for sequence in sequences], [sequence.sampled_token_ids[-1:] for sequence in sequences]
        )
        return self._sample(sequences, logits)

    def _sample(self, sequences: list[Sequence], logits: Tensor) -> list[Output]:
        """logits: [sequences, vocab]."""
        outputs: list[Output] = []
        for sequence, token_id in zip(sequences, sample_all([each.sampler for each in sequences], logits), strict=True):
            sequence.sampled_token_ids.append(token_id)
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
        sequence.forced_logits = logits.clone()  # the next pass may overwrite them
        sequence.margins = Sampler(sequence.request.sampling, sequence.request.seed).margins(logits, forced)
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
        """Take a sequence out of its queue and give back what it holds."""
        sequence.holding.release()
        queue = self._waiting if sequence.phase is Phase.WAITING else self._running
        queue.remove(sequence)

    # ── idle time ────────────────────────────────────────────────────────────────────────────────────────────

    def _idle(self) -> list[Output]:
        awaited = {key: warming for key, warming in self._warming.items() if warming.warm_up.is_awaited}
        try:
            # What is awaited is looked at before every layer, the rest when nothing is being encoded.
            outputs = self._warm(awaited) if awaited or self._encoding else self._warm(self._warming)
            if self._encoding:
                self._encoding.advance()
            elif not self._warming:
                self._relink()
        except BlockMemoryError:
            return self._give_up_warming()
        return outputs

    def _warm(self, warmings: Mapping[Hashable, _Warming]) -> list[Output]:
        """Look up one warm-up, and place it if it is complete; after the last, ask for one batch of all they miss."""
        for key, warming in warmings.items():
            if warming.missing is None:
                return self._look_up(key, warming)
        missing: dict[BlockId, Block] = {}
        known: dict[BlockId, Block] = {}
        for warming in warmings.values():
            missing |= {block.id: block for block in warming.missing or ()}
            known |= {block.id: block for block in warming.warm_up.blocks}
            warming.missing = None
        if missing:
            self._encoding.ask_for(list(missing.values()), known.values())
        return []

    def _look_up(self, key: Hashable, warming: _Warming) -> list[Output]:
        try:
            warming.missing = warming.holding.hold(warming.warm_up.blocks)
            if warming.missing:
                return []
            self._place(warming.warm_up, warming.holding)
        except BlockMemoryError:
            pass  # warming is a courtesy: what does not fit waits until an utterance needs it
        return [self._end_warming(key)]

    def _place(self, warm_up: WarmUp, holding: Holding) -> None:
        """Bring the conversation's context up to date, if it is idle and nothing it needs was lost."""
        if warm_up.is_awaited:
            self._contexts.ensure(warm_up.conversation)
        context = self._contexts.peek(warm_up.conversation)
        if context is None:
            return
        layout = self._policy.arrange((*warm_up.blocks, *warm_up.turns))
        if not holding.hold(placement.block for placement in context.stale(layout)):
            context.place(layout, self._cache.get)
            if self._policy.relink is not None and isinstance(context, AssembledContext):
                self._relinking[warm_up.conversation] = Relinking(
                    self._model.decoder, self._model.rope, context, self._policy.relink
                )

    def _relink(self) -> None:
        """Run one layer of a re-linking, and commit it after the last if its conversation is idle."""
        if not self._relinking:
            return
        conversation, relinking = next(iter(self._relinking.items()))
        if not relinking.is_done:
            relinking.advance()
        if relinking.is_done:
            del self._relinking[conversation]
            relinking.commit()

    def _end_warming(self, key: Hashable) -> Output:
        self._warming.pop(key).holding.release()
        return WarmedOutput(key)

    def _give_up_warming(self) -> list[Output]:
        return [self._end_warming(key) for key in list(self._warming)]
