"""From what an NPC knows to the blocks of its prompt: the only place where texts become tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from npc_engine.blocks import Block, BlockId, ModelIdentity
from npc_engine.dialogue.conversation import Conversation, ConversationId
from npc_engine.dialogue.layout import fit
from npc_engine.dialogue.render import HEADER, BlockText, render_layout
from npc_engine.errors import UtteranceError
from npc_engine.inference import ChatTemplate, Tokenizer
from npc_engine.runtime.linking import Linking, OwnedBlock, everything_before, header_only
from npc_engine.world import WorldState

_MAX_UTTERANCE_CHARS = 16_384  # refused before it is tokenized; no token limit that makes sense lets more through
_MAX_CACHED_TEXTS = 65_536


@dataclass(frozen=True, slots=True)
class Transcript:
    """A conversation as tokens.

    `turns` are computed: one block per exchange, each behind everything that was in front of it. `pending` was said,
    but is not in a block: it goes in front of the next final block.
    """

    turns: tuple[Block, ...] = ()
    pending: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Prompt:
    """Everything in front of a reply: blocks, turns, final block."""

    header: Block
    owned: tuple[OwnedBlock, ...]
    turns: tuple[Block, ...]
    final_token_ids: tuple[int, ...] = field(default=())
    num_left_out: int = 0  # blocks for which there was no room

    @property
    def blocks(self) -> tuple[Block, ...]:
        return (self.header, *(owned.block for owned in self.owned))

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The whole prompt, for the baseline that computes all of it."""
        in_blocks = (token_id for block in (*self.blocks, *self.turns) for token_id in block.token_ids)
        return (*in_blocks, *self.final_token_ids)


class Prompter:
    """Builds prompts. Tokenizes a text once, and makes one block of it whoever uses it.

    `max_tokens` bounds blocks, conversation and final block together; `max_reply_tokens` of it stay free for the
    reply.
    """

    def __init__(
        self,
        identity: ModelIdentity,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        *,
        max_tokens: int,
        max_reply_tokens: int,
        max_utterance_tokens: int,
        linking: Linking = header_only,
    ) -> None:
        self._identity = identity
        self._tokenizer = tokenizer
        self._template = template
        self._max_tokens = max_tokens
        self._max_reply_tokens = max_reply_tokens
        self._max_utterance_tokens = max_utterance_tokens
        # Utterance and markup, and the token that ended the reply before.
        opening = max(len(template.user_open), len(template.next_user_open))
        self._max_final_tokens = 1 + opening + max_utterance_tokens + len(template.assistant_open)
        self._linking = linking
        self._tokens_of: dict[str, tuple[int, ...]] = {}
        self._block_of: dict[tuple[str, tuple[BlockId, ...]], Block] = {}
        # The template writes the beginning of the prompt into the header: nothing else can be its first block.
        header = (*template.system_open, *tokenizer.encode_text(HEADER))
        self.header = Block.behind(identity, (), header)

    def check_utterance(self, text: str) -> None:
        """Raise :class:`UtteranceError` for an utterance that is empty or too long."""
        if not text.strip():
            raise UtteranceError("utterance: it is empty; say something")
        if len(text) > _MAX_UTTERANCE_CHARS:
            raise UtteranceError(
                f"utterance: {len(text)} characters are too long; the limit is {self._max_utterance_tokens} tokens "
                "(max_utterance_tokens)"
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UtteranceError(f"utterance: character {error.start} is half a surrogate pair; send UTF-8") from None
        num_tokens = len(self._tokenizer.encode_text(text))
        if num_tokens > self._max_utterance_tokens:
            raise UtteranceError(
                f"utterance: {num_tokens} tokens are too long; the limit is {self._max_utterance_tokens} "
                "(max_utterance_tokens)"
            )

    def retokenize(self, conversation: Conversation) -> Transcript:
        """The transcript of a conversation held with another model: pending, to be computed once.

        Of a long one, the newest exchanges within a quarter of the budget.
        """
        exchanges = [
            (
                self._tokenizer.encode_text(exchange.utterance),
                (*self._template.assistant_open, *self._tokenizer.encode_text(exchange.speech)),
            )
            for exchange in conversation.exchanges
        ]
        budget = self._max_tokens // 4
        kept: list[int] = []
        for utterance, reply in reversed(exchanges):
            opening = self._template.next_user_open if kept else ()
            exchange = (*utterance, *reply, *opening)
            if len(exchange) + len(kept) > budget:
                break
            kept[:0] = exchange
        return Transcript(pending=(*self._template.user_open, *kept) if kept else ())

    def prompt(
        self,
        state: WorldState,
        conversation_id: ConversationId,
        transcript: Transcript,
        utterance: str | None = None,
    ) -> Prompt:
        """The prompt of an NPC for a player as the world is now; without `utterance` it has no final block.

        When the budget is short, the least important blocks are left out, and then the oldest turns.
        """
        texts = render_layout(state, conversation_id.npc, conversation_id.player)
        return self.assemble(texts, transcript, utterance)

    def assemble(self, texts: Sequence[BlockText], transcript: Transcript, utterance: str | None = None) -> Prompt:
        """The prompt over these texts; see :meth:`prompt`."""
        final = () if utterance is None else self._final(transcript, utterance)
        sizes = [len(self._tokens(text.text)) for text in texts]
        budget = self._max_tokens - self._max_reply_tokens - self.header.num_tokens
        # The final block may take its limit: a layout must not change because somebody says more.
        budget -= max(len(final), self._max_final_tokens)
        kept = fit(texts, sizes, budget)
        owned = self._link(kept.blocks)
        turns = _newest(transcript.turns, budget - kept.num_tokens)
        if self._linking is everything_before:
            turns = self._relinked_turns(owned, turns)
        return Prompt(self.header, owned, turns, final, len(kept.left_out))

    def turn(self, prompt: Prompt, sampled_token_ids: Sequence[int], num_folded: int) -> Block:
        """The exchange as a block: the final block and the reply, behind everything that was in front of them.

        Its last `num_folded` turns were computed again with it and belong to it now.
        """
        num_kept = len(prompt.turns) - num_folded
        folded = (token_id for turn in prompt.turns[num_kept:] for token_id in turn.token_ids)
        token_ids = (*folded, *prompt.final_token_ids, *sampled_token_ids[:-1])
        return Block.behind(self._identity, (*prompt.blocks, *prompt.turns[:num_kept]), token_ids)

    def _final(self, transcript: Transcript, utterance: str) -> tuple[int, ...]:
        is_first = not transcript.turns and not transcript.pending
        return (
            *transcript.pending,
            *self._opening(is_first=is_first),
            *self._tokenizer.encode_text(utterance),
            *self._template.assistant_open,
        )

    def _opening(self, *, is_first: bool) -> tuple[int, ...]:
        return self._template.user_open if is_first else self._template.next_user_open

    def _link(self, texts: Sequence[BlockText]) -> tuple[OwnedBlock, ...]:
        """A block for each text, behind the parents that the linking gives it."""
        owned: list[OwnedBlock] = []
        for text in texts:
            parents = self._linking(self.header, owned, text)
            owned.append(OwnedBlock(text, self._block(text.text, parents)))
        return tuple(owned)

    def _relinked_turns(self, owned: Sequence[OwnedBlock], turns: Sequence[Block]) -> tuple[Block, ...]:
        """Full attention: what was said is computed again when something in front of it has changed."""
        before = [self.header, *(each.block for each in owned)]
        for turn in turns:
            before.append(Block.behind(self._identity, before, turn.token_ids))
        return tuple(before[len(before) - len(turns) :])

    def _block(self, text: str, parents: tuple[Block, ...]) -> Block:
        key = (text, tuple(parent.id for parent in parents))
        block = self._block_of.get(key)
        if block is None:
            if len(self._block_of) >= _MAX_CACHED_TEXTS:
                self._block_of.clear()
            block = Block.behind(self._identity, parents, self._tokens(text))
            self._block_of[key] = block
        return block

    def _tokens(self, text: str) -> tuple[int, ...]:
        token_ids = self._tokens_of.get(text)
        if token_ids is None:
            if len(self._tokens_of) >= _MAX_CACHED_TEXTS:
                self._tokens_of.clear()
            token_ids = tuple(self._tokenizer.encode_text(text))
            self._tokens_of[text] = token_ids
        return token_ids


def _newest(turns: Sequence[Block], budget: int) -> tuple[Block, ...]:
    """The longest end of the conversation within `budget` tokens."""
    kept: list[Block] = []
    for turn in reversed(turns):
        budget -= turn.num_tokens
        if budget < 0:
            break
        kept.append(turn)
    return tuple(reversed(kept))
