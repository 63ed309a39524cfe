"""One reply while it is spoken: tokens in, speech out."""

from __future__ import annotations

import time

from npc_engine.config import SamplingParams
from npc_engine.dialogue.sentences import SentenceSplitter
from npc_engine.inference import FinishedOutput, FinishReason, PromptCounts, StreamDecoder, Tokenizer
from npc_engine.runtime.reply import Reply, ReplyDelta, ReplyStats, ReplyStream
from npc_engine.runtime.simulation import ReplyEnded
from npc_engine.world import EntityId, Kind, entity_id


class Speaking:
    """Feeds a stream with what the model says, from the utterance (:func:`time.monotonic` `said_s`) to the reply."""

    def __init__(self, stream: ReplyStream, said_s: float, sampling: SamplingParams, tokenizer: Tokenizer) -> None:
        self.stream = stream
        self.sampling = sampling
        self.is_cancelled = False
        self._said_s = said_s
        self._first_token_s: float | None = None
        self._decoder = StreamDecoder(tokenizer)
        self._sentences = SentenceSplitter()
        self._speech = ""

    @property
    def parties(self) -> tuple[EntityId, EntityId]:
        """Player and NPC."""
        return entity_id(Kind.PLAYER, self.stream.player), entity_id(Kind.CHARACTER, self.stream.npc)

    def hear(self, token_id: int) -> None:
        """The next token of the reply."""
        if self._first_token_s is None:
            self._first_token_s = time.monotonic()
        text = self._decoder.feed(token_id)
        if not self._speech:
            text = text.lstrip()  # a reply begins with its first word
        if not text:
            return
        self._speech += text
        for piece, ends_sentence in self._sentences.feed(text):
            self.stream.feed(ReplyDelta(piece, ends_sentence))

    def end(self, output: FinishedOutput) -> tuple[Reply, ReplyEnded]:
        """The reply is over: what its caller gets, and what enters the simulation."""
        if self._sentences.is_open:
            self.stream.feed(ReplyDelta("", ends_sentence=True))
        is_stopped = output.reason is FinishReason.STOP
        reply = self._reply(output.reason, output.counts, len(output.sampled_token_ids) - is_stopped)
        ended = ReplyEnded(
            output.request_id,
            *self.parties,
            speech=reply.speech if output.turn is not None else None,
            sampled_token_ids=output.sampled_token_ids,
            is_stopped=is_stopped,
            num_folded=output.num_folded,
        )
        return reply, ended

    def end_unheard(self) -> tuple[Reply, ReplyEnded]:
        """The reply was cancelled before the model heard of it."""
        reply = self._reply(FinishReason.CANCELLED, PromptCounts(0, 0), 0)
        return reply, self.nothing_said()

    def nothing_said(self) -> ReplyEnded:
        """For the simulation: nothing came of the utterance."""
        return ReplyEnded(self.stream.request_id, *self.parties, speech=None)

    def _reply(self, reason: FinishReason, counts: PromptCounts, num_reply_tokens: int) -> Reply:
        now_s = time.monotonic()
        first_token_s = now_s if self._first_token_s is None else self._first_token_s
        return Reply(
            request_id=self.stream.request_id,
            npc=self.stream.npc,
            player=self.stream.player,
            speech=self._speech.rstrip(),
            emotion=None,
            actions=(),
            finish_reason=reason,
            stats=ReplyStats(
                ttft_ms=(first_token_s - self._said_s) * 1000,
                total_ms=(now_s - self._said_s) * 1000,
                num_prompt_tokens=counts.num_prompt,
                num_cached_tokens=counts.num_cached,
                num_encoded_tokens=counts.num_encoded,
                num_reply_tokens=num_reply_tokens,
            ),
        )
