"""A sample as one sequence of tokens: which token sees which others, and from what distance.

What is trained is what is served. There a block is encoded at local positions, behind its header; in a prompt its keys
are moved to where it lies; a turn of the conversation stays as it was computed, over the blocks of that time. So one
token's key is seen from several positions::

    segment    header | block A | block B | turn 1                  | turn 2 (its reply is learned)
    position   0      | h       | h       | h+a+b                   | h+a+b+t
    sees              | header  | header  | header, A at h, B at h+a | header, A at h, B at h+a, turn 1 at h+a+b

In full attention there is one segment, and every token sees all before it.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from npc_engine.dialogue.render import HEADER
from npc_engine.inference import ChatTemplate, Tokenizer
from npc_engine.tuning.samples import Sample, SampleTurn

_LOOKUP_TOKENS: Final = 3  # an answer begins with the fact, or close to it


class Sight(NamedTuple):
    """An earlier segment, by its index, as seen at `position`."""

    segment: int
    position: int


class Target(NamedTuple):
    """What is learned: behind the token at `offset` of its segment comes `token_id`."""

    offset: int
    token_id: int


class Span(NamedTuple):
    """A block's text, which lies in a segment's tokens from `start` on, up to `end`."""

    start: int
    end: int
    text: str


class Lookup(NamedTuple):
    """The token at `offset` of its segment is where an answer begins that stands in these blocks."""

    offset: int
    sources: tuple[str, ...]


class Segment(NamedTuple):
    """Tokens that are computed together, from `position` on.

    Each sees the segments in `sees`, and those before it in this one. `spans` are the blocks that it holds.
    """

    token_ids: tuple[int, ...]
    position: int
    sees: tuple[Sight, ...] = ()
    targets: tuple[Target, ...] = ()
    spans: tuple[Span, ...] = ()
    lookups: tuple[Lookup, ...] = ()

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)


Episode = tuple[Segment, ...]
"""A sample: segments, each behind those that it sees."""


class EpisodeBuilder:
    """Turns samples into segments with the engine's header and a model's tokenizer and chat template."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate, *, header: str = HEADER) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._header = (*template.system_open, *tokenizer.encode_text(header))

    def full(self, sample: Sample) -> Episode:
        """Full attention: one segment, the whole conversation over the blocks of now."""
        token_ids = [*self._header]
        spans: list[Span] = []
        targets: list[Target] = []
        lookups: list[Lookup] = []
        for text in sample.blocks:
            tokens = self._tokens(text)
            spans.append(Span(len(token_ids), len(token_ids) + len(tokens), text))
            token_ids += tokens
        for i in range(len(sample.turns)):
            turn = self._turn(sample, i)
            start = len(token_ids)
            targets += (target._replace(offset=start + target.offset) for target in turn.targets)
            lookups += (lookup._replace(offset=start + lookup.offset) for lookup in turn.lookups)
            token_ids += turn.token_ids
        return (Segment(tuple(token_ids), 0, (), tuple(targets), tuple(spans), tuple(lookups)),)

    def blocks(self, sample: Sample) -> Episode:
        """Block attention, as the engine computes it."""
        episode = [Segment(self._header, 0)]
        index_of: dict[str, int] = {}
        spoken: list[int] = []  # the segments of the turns so far
        for i, turn in enumerate(sample.turns):
            sights = self._lay_out(turn, episode, index_of)
            position = sights[-1].position + episode[sights[-1].segment].num_tokens
            for segment in spoken:
                sights.append(Sight(segment, position))
                position += episode[segment].num_tokens
            spoken.append(len(episode))
            episode.append(self._turn(sample, i)._replace(position=position, sees=tuple(sights)))
        return tuple(episode)

    def _lay_out(self, turn: SampleTurn, episode: list[Segment], index_of: dict[str, int]) -> list[Sight]:
        """Where the header and this turn's blocks lie; blocks that are new are added to the episode."""
        position = len(self._header)
        sights = [Sight(0, 0)]
        for text in turn.blocks:
            if text not in index_of:
                index_of[text] = len(episode)
                tokens = self._tokens(text)
                span = Span(0, len(tokens), text)
                episode.append(Segment(tokens, len(self._header), (Sight(0, 0),), spans=(span,)))
            sights.append(Sight(index_of[text], position))
            position += episode[index_of[text]].num_tokens
        return sights

    def _turn(self, sample: Sample, index: int) -> Segment:
        """An exchange without its place: the final block and the reply, as the engine seals them."""
        turn, template = sample.turns[index], self._template
        opening = template.user_open if index == 0 else template.next_user_open
        prompt = (*opening, *self._tokens(turn.player), *template.assistant_open)
        reply = self._tokens(turn.reply)
        targets: tuple[Target, ...] = ()
        lookups: tuple[Lookup, ...] = ()
        if index >= len(sample.turns) - sample.num_targets:
            first = len(prompt) - 1  # the token that the reply's first one is predicted from
            targets = tuple(Target(first + i, token_id) for i, token_id in enumerate((*reply, template.stop_id)))
            if turn.sources:
                lookups = tuple(Lookup(first + i, turn.sources) for i in range(min(_LOOKUP_TOKENS, len(reply))))
        return Segment((*prompt, *reply), 0, (), targets, lookups=lookups)

    def _tokens(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode_text(text))
