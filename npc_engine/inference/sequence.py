"""One request on its way through the engine."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from torch import Tensor

from npc_engine.blocks import Block, BlockId, Layout
from npc_engine.inference.context_pool import ConversationContext
from npc_engine.inference.holding import Holding
from npc_engine.inference.request import FinishedOutput, FinishReason, GenerationRequest, PromptCounts
from npc_engine.inference.sampler import Sampler


class Phase(Enum):
    """Where a request stands, with its legal successors."""

    WAITING = "waiting"  # for its blocks, or for its turn
    RUNNING = "running"
    FINISHED = "finished"

    def check_successor(self, successor: Phase) -> None:
        legal = {Phase.WAITING: {Phase.RUNNING, Phase.FINISHED}, Phase.RUNNING: {Phase.FINISHED}, Phase.FINISHED: set()}
        assert successor in legal[self], f"{self} → {successor}"


class Sequence:
    """The mutable side of one request: what it holds, what was computed, what was said.

    ::

        | blocks | kept turns | folded turns, final block | sampled tokens … | last sampled token |
        |<------ layout ----->|<--------- tail ---------->|
        |<- cached, placed -->|<------------- computed here ---------------->|   (never fed back)
    """

    def __init__(
        self,
        request: GenerationRequest,
        holding: Holding,
        arrange: Callable[[tuple[Block, ...]], Layout] = Layout.of,
    ) -> None:
        self.request = request
        self._arrange = arrange
        self.phase = Phase.WAITING
        self.is_cancelled = False
        self.holding = holding  # until the layout is placed
        self.encoded: dict[BlockId, Block] = {}  # blocks that were missing when the request came
        self.sampled_token_ids: list[int] = []
        self.margins: tuple[float, ...] = ()
        self.forced_logits: Tensor | None = None
        self.sampler = Sampler(request.sampling, request.seed)
        self._num_kept_turns = len(request.turns)
        self._layout: Layout | None = None
        self._context: ConversationContext | None = None

    @property
    def context(self) -> ConversationContext:
        assert self._context is not None, "not running"
        return self._context

    @property
    def layout(self) -> Layout:
        """What lies in front of the tail."""
        if self._layout is None:
            self._layout = self._arrange((*self.request.blocks, *self.request.turns[: self._num_kept_turns]))
        return self._layout

    @property
    def tail(self) -> tuple[int, ...]:
        """The tokens to compute: the turns that were lost, then the final block."""
        lost = self.request.turns[self._num_kept_turns :]
        return (*(token_id for turn in lost for token_id in turn.token_ids), *self.request.final_token_ids)

    @property
    def counts(self) -> PromptCounts:
        num_prompt = self.layout.num_tokens + len(self.tail)
        num_encoded = len(self.tail) + sum(block.num_tokens for block in self.encoded.values())
        return PromptCounts(num_prompt, num_prompt - num_encoded)

    def fold_turns_from(self, index: int) -> None:
        """This turn's keys and values are lost: compute it, and those behind it, again with the final block."""
        self._num_kept_turns = min(self._num_kept_turns, index)
        self._layout = None

    def start(self, context: ConversationContext) -> None:
        self.move_to(Phase.RUNNING)
        self._context = context

    def finish_reason(self) -> FinishReason | None:
        """Why the reply is over after the last sampled token, or None if it goes on."""
        if self.sampled_token_ids[-1] in self.request.stop_ids:
            return FinishReason.STOP
        if len(self.sampled_token_ids) >= self.request.sampling.max_tokens:
            return FinishReason.LENGTH
        return None

    def finished(self, reason: FinishReason, turn: Block | None) -> FinishedOutput:
        """Close the sequence."""
        self.move_to(Phase.FINISHED)
        return FinishedOutput(
            request_id=self.request.request_id,
            reason=reason,
            turn=turn,
            num_folded=len(self.request.turns) - self._num_kept_turns if turn is not None else 0,
            pending_token_ids=() if reason is FinishReason.STOP else tuple(self.sampled_token_ids[-1:]),
            sampled_token_ids=tuple(self.sampled_token_ids),
            counts=self.counts,
            margins=self.margins,
            forced_logits=self.forced_logits,
        )

    def move_to(self, phase: Phase) -> None:
        self.phase.check_successor(phase)
        self.phase = phase
