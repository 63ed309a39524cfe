"""What the inference engine is asked for, and what it answers."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

from torch import Tensor

from npc_engine.blocks import Block
from npc_engine.config import SamplingParams
from npc_engine.errors import NpcEngineError


class Priority(IntEnum):
    """Lower goes first."""

    PLAYER = 0
    AMBIENT = 1


class FinishReason(StrEnum):
    """Why a reply ended."""

    STOP = "stop"  # the NPC ended its turn
    LENGTH = "length"  # max_tokens, or the model's last position
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One reply to generate.

    The prompt is `blocks` (independent of the conversation, parents before children), then `turns` (what was said
    before, each encoded behind everything in front of it), then `final_token_ids`. `conversation` names the
    conversation, so that its assembled context is found again; any hashable will do.

    With `forced_token_ids` nothing is sampled: these tokens, a recorded reply up to and including the one that ended
    it, are fed back, and the answer says how far each was from being the likeliest.
    """

    request_id: int
    conversation: Hashable
    blocks: tuple[Block, ...]
    turns: tuple[Block, ...]
    final_token_ids: tuple[int, ...]
    sampling: SamplingParams
    seed: int
    stop_ids: frozenset[int]
    priority: Priority = Priority.PLAYER
    forced_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class PromptCounts:
    """Tokens of one prompt. `num_encoded` were computed for this request, `num_cached` were not."""

    num_prompt: int
    num_cached: int

    @property
    def num_encoded(self) -> int:
        return self.num_prompt - self.num_cached


@dataclass(frozen=True, slots=True)
class TokenOutput:
    """The next token of a reply, stop tokens excepted."""

    request_id: int
    token_id: int


@dataclass(frozen=True, slots=True)
class FinishedOutput:
    """The end of a reply.

    `turn` is the exchange as a block, cached from now on: the final block and the reply, behind everything that was in
    front. It also covers the last `num_folded` turns of the request, whose keys and values were lost and computed
    again. `turn` is None when the request was cancelled before anything was computed.

    `sampled_token_ids` is the reply with the stop token that ended it, if one did. Its last token was never fed to the
    model: the stop token is written again by the template, and otherwise it is in `pending_token_ids`, which go in
    front of the conversation's next final block. `margins` are the logit margins of forced tokens, `forced_logits`
    ([tokens, vocab], float32) what each was judged by.
    """

    request_id: int
    reason: FinishReason
    turn: Block | None
    num_folded: int
    pending_token_ids: tuple[int, ...]
    sampled_token_ids: tuple[int, ...]
    counts: PromptCounts
    margins: tuple[float, ...] = ()
    forced_logits: Tensor | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class FailedOutput:
    """A request that could not be served; nothing of it was cached."""

    request_id: int
    error: NpcEngineError


@dataclass(frozen=True, slots=True)
class WarmedOutput:
    """The blocks of a warm-up are in memory, or there is no room for them: nothing more will be done about it."""

    key: Hashable


Output = TokenOutput | FinishedOutput | FailedOutput | WarmedOutput
