"""Recorded replies, fed back to a model: every token has to be one that it might have chosen."""

from __future__ import annotations

from collections.abc import Sequence

from npc_engine.blocks import Block
from npc_engine.config import EngineConfig
from npc_engine.errors import BlockMemoryError
from npc_engine.inference import (
    FailedOutput,
    FinishedOutput,
    FinishReason,
    GenerationRequest,
    InferenceEngine,
    Model,
    open_memory,
)
from npc_engine.runtime.differences import Asked, MismatchError
from npc_engine.runtime.recording_lines import RecordedReply


class ForcedReplies:
    """Computes replies with their tokens given, and keeps the figures.

    `worst_margin` is the largest logit margin of the `num_tokens` tokens that were checked; a reply that was sampled at
    a temperature has no likeliest tokens to compare with, and counts in `num_unchecked`.
    """

    def __init__(self, model: Model, config: EngineConfig, margin_limit: float) -> None:
        self.num_replies = 0
        self.num_unchecked = 0
        self.num_tokens = 0
        self.worst_margin = 0.0
        self._model = model
        self._margin_limit = margin_limit
        self._cache, kind = open_memory(
            model,
            config.attention,
            max_block_memory=config.max_block_memory,
            max_context_memory=config.max_context_memory,
            store=None,
        )
        self._engine = InferenceEngine(model, self._cache, max_context_memory=config.max_context_memory, kind=kind)

    def check(self, asked: Asked, line: RecordedReply) -> None:
        """Compute a reply and compare it with its line. :class:`MismatchError` at the first difference."""
        conversation = asked.due.due.conversation
        if (line.player, line.npc) != tuple(conversation):
            raise MismatchError(
                f"reply to request {line.request_id}: recorded of {line.npc} to {line.player}, replayed of "
                f"{conversation.npc} to {conversation.player}"
            )
        self.num_replies += 1
        if line.turn_id is None:
            if line.sampled_token_ids or line.finish_reason is not FinishReason.CANCELLED:
                raise MismatchError(f"turn_id: missing in the reply to request {line.request_id}", line.npc)
            return
        self._compare(asked, line, self._force(asked, line))

    def name_token(self, token_ids: Sequence[int]) -> str:
        """The first of some token ids and its text, for people."""
        if not token_ids or token_ids[0] >= self._model.config.vocab_size:
            return str(token_ids[0]) if token_ids else "the end"
        return f"{token_ids[0]} ({self._model.tokenizer.decode(token_ids)!r})"

    def _force(self, asked: Asked, line: RecordedReply) -> FinishedOutput:
        vocab_size = self._model.config.vocab_size
        prompt, forced = asked.due.prompt, line.sampled_token_ids
        if not forced:
            raise MismatchError(f"sampled_token_ids: none in the reply to request {line.request_id}", line.npc)
        for at, token_id in enumerate(forced):
            if token_id >= vocab_size:
                raise MismatchError(f"reply token {at}: {token_id} is not in a vocabulary of {vocab_size}", line.npc)
        if line.num_folded > len(prompt.turns):
            raise MismatchError(f"num_folded: {line.num_folded} of {len(prompt.turns)} turns were lost", line.npc)
        # Turns that had been lost were computed with the final block; here they are still there.
        num_kept = len(prompt.turns) - line.num_folded
        folded = [token_id for turn in prompt.turns[num_kept:] for token_id in turn.token_ids]
        request = GenerationRequest(
            request_id=line.request_id,
            conversation=asked.due.due.conversation,
            blocks=prompt.blocks,
            turns=prompt.turns[:num_kept],
            final_token_ids=(*folded, *prompt.final_token_ids),
            sampling=asked.recorded.sampling.params,
            seed=asked.recorded.seed,
            stop_ids=self._model.template.stop_ids,
            forced_token_ids=forced,
        )
        self._engine.submit(request)
        while True:
            for output in self._engine.step():
                match output:
                    case FinishedOutput():
                        self._keep(output.turn)
                        return output
                    case FailedOutput(_, error):
                        raise error

    def _keep(self, turn: Block | None) -> None:
        """Hold a turn for good: it was computed behind a world that may not be there any more."""
        if turn is None or self._cache.acquire([turn]):
            raise BlockMemoryError(
                "the recording's conversations don't fit in max_block_memory; raise it (--max-block-memory)"
            )

    def _compare(self, asked: Asked, line: RecordedReply, finished: FinishedOutput) -> None:
        if line.finish_reason is not finished.reason:
            raise MismatchError(f"finish_reason: recorded {line.finish_reason}, replayed {finished.reason}", line.npc)
        counts = {
            "num_prompt_tokens": finished.counts.num_prompt,
            "num_encoded_tokens": line.num_prompt_tokens - line.num_cached_tokens,
            "num_reply_tokens": len(line.sampled_token_ids) - (line.finish_reason is FinishReason.STOP),
        }
        for field, value in counts.items():
            if getattr(line, field) != value:
                raise MismatchError(f"{field}: recorded {getattr(line, field)}, replayed {value}", line.npc)
        if asked.recorded.sampling.temperature == 0:
            self._check_margins(line, finished.margins)
        else:
            self.num_unchecked += 1
        turn_id = finished.turn.id.hex() if finished.turn is not None else None
        if turn_id != line.turn_id:
            raise MismatchError(
                f"block {line.npc} turn of request {line.request_id}: recorded {str(line.turn_id)[:16]}, the model's "
                f"engine sealed {str(turn_id)[:16]}",
                line.npc,
            )

    def _check_margins(self, line: RecordedReply, margins: Sequence[float]) -> None:
        self.num_tokens += len(margins)
        self.worst_margin = max(self.worst_margin, *margins)
        for at, margin in enumerate(margins):
            if not margin <= self._margin_limit:  # NaN is a difference, too
                raise MismatchError(
                    f"reply to request {line.request_id}, token {at} "
                    f"{self.name_token(line.sampled_token_ids[at : at + 1])}: lies {margin:.3f} below the likeliest "
                    f"one, the limit is {self._margin_limit:.3f}",
                    line.npc,
                )
