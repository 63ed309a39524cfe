"""Episodes packed into rows of tensors, without padding between them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from npc_engine.tuning.segments import Episode, Segment


class Pair(NamedTuple):
    """A sample in both modes; their targets are the same, in the same order."""

    full: Episode
    blocks: Episode

    @property
    def num_tokens(self) -> int:
        """Of the longer one: with blocks, versions that a game has replaced are there, too."""
        return max(_num_tokens(self.full), _num_tokens(self.blocks))


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of packed tokens, padded to one length.

    A *slot* is a token's key and value as seen from one position; several slots may be of one token. Slots lie in
    groups (one per segment and position), and `sees` says which segment sees which group; within a group a token sees
    no later token.

    - `token_ids`, `positions`, `segments`: [rows, tokens]
    - `slot_tokens` (index of the slot's token in its row), `slot_positions`, `slot_groups`: [rows, slots]
    - `sees`: [rows, segments, groups], bool
    - `target_rows`, `target_columns` (of the token that predicts), `target_ids`: [targets]
    - `token_blocks`: [rows, tokens], which block of its row a token is of, from 1; 0 for header and turns
    - `lookup_columns`: [rows, lookups], tokens at which an answer begins
    - `lookup_sources`: [rows, lookups, blocks + 1], bool, the blocks in which it stands; none where a row has fewer
      lookups than others

    The same without a mask, for a kernel that takes sequences of different lengths, one per segment: its queries are
    its tokens, its keys the slots it sees with its own last, causal from the end.

    - `key_slots`: indices into all rows' slots, sequence after sequence
    - `query_ends`, `key_ends`: [sequences + 1], int32, cumulative, from 0; the longest have `max_queries`, `max_keys`
    """

    token_ids: Tensor
    positions: Tensor
    segments: Tensor
    slot_tokens: Tensor
    slot_positions: Tensor
    slot_groups: Tensor
    sees: Tensor
    target_rows: Tensor
    target_columns: Tensor
    target_ids: Tensor
    token_blocks: Tensor
    lookup_columns: Tensor
    lookup_sources: Tensor
    key_slots: Tensor
    query_ends: Tensor
    key_ends: Tensor
    max_queries: int
    max_keys: int

    def to(self, device: torch.device) -> Batch:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {
            name: each.to(device, non_blocking=True) if isinstance(each, Tensor) else each
            for name, each in values.items()
        }
        return Batch(**moved)

    def mask(self) -> Tensor:
        """Which token sees which slot: [rows, tokens, slots], bool. A token of padding sees itself."""
        rows = torch.arange(len(self.token_ids), device=self.token_ids.device)[:, None, None]
        visible = self.sees[rows, self.segments[:, :, None], self.slot_groups[:, None]]
        columns = torch.arange(self.token_ids.shape[1], device=self.token_ids.device)
        return visible & (self.slot_tokens[:, None] <= columns[:, None])


class _Row:
    """One row under construction, as plain lists."""

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.positions: list[int] = []
        self.segments: list[int] = []
        self.slots: list[tuple[int, int, int]] = []  # token, position, group
        self.sights: list[tuple[int, int]] = []  # segment, group
        self.targets: list[tuple[int, int]] = []  # column, token id
        self.groups: list[range] = []  # their slots
        self.sequences: list[tuple[int, list[int]]] = []  # queries, slots; one per segment
        self.token_blocks: list[int] = []
        self.lookups: list[tuple[int, list[int]]] = []  # column, blocks
        self.num_segments = 0
        self.num_blocks = 0

    def add(self, episode: Episode) -> None:
        first_segment = self.num_segments
        start_of: list[int] = []
        group_of: dict[tuple[int, int], int] = {}
        block_of: dict[str, int] = {}
        for index, segment in enumerate(episode):
            start_of.append(len(self.token_ids))
            number = first_segment + index
            self.targets += ((start_of[index] + target.offset, target.token_id) for target in segment.targets)
            self.token_ids += segment.token_ids
            self.positions += range(segment.position, segment.position + segment.num_tokens)
            self.segments += [number] * segment.num_tokens
            self.sequences.append((segment.num_tokens, []))
            self._add_spans(segment, start_of[index], block_of)
            for seen, position in (*segment.sees, (index, segment.position)):
                if (seen, position) not in group_of:
                    group_of[seen, position] = self._add_group(start_of[seen], episode[seen].num_tokens, position)
                self._see(number, group_of[seen, position])
        self.num_segments += len(episode)

    def _add_spans(self, segment: Segment, start: int, block_of: dict[str, int]) -> None:
        blocks = [0] * segment.num_tokens
        for span in segment.spans:
            if span.text not in block_of:
                self.num_blocks += 1
                block_of[span.text] = self.num_blocks
            blocks[span.start : span.end] = [block_of[span.text]] * (span.end - span.start)
        self.token_blocks += blocks
        self.lookups += (
            (start + lookup.offset, [block_of[text] for text in lookup.sources]) for lookup in segment.lookups
        )

    def pad(self, num_tokens: int) -> None:
        """Fill up with a segment that nothing else sees."""
        missing = num_tokens - len(self.token_ids)
        if missing > 0:
            start = len(self.token_ids)
            self.token_ids += [0] * missing
            self.token_blocks += [0] * missing
            self.positions += range(missing)
            self.segments += [self.num_segments] * missing
            self.sequences.append((missing, []))
            self._see(self.num_segments, self._add_group(start, missing, 0))
            self.num_segments += 1

    @property
    def num_groups(self) -> int:
        return len(self.groups)

    def _see(self, segment: int, group: int) -> None:
        self.sights.append((segment, group))
        self.sequences[-1][1].extend(self.groups[group])

    def _add_group(self, start: int, num_tokens: int, position: int) -> int:
        group = self.num_groups
        self.groups.append(range(len(self.slots), len(self.slots) + num_tokens))
        self.slots += ((start + i, position + i, group) for i in range(num_tokens))
        return group


def collate(rows: Sequence[Sequence[Episode]]) -> Batch:
    """The tensors of these rows of episodes."""
    built = []
    for episodes in rows:
        row = _Row()
        for episode in episodes:
            row.add(episode)
        built.append(row)
    num_tokens = _round_up(max(len(row.token_ids) for row in built))
    for row in built:
        row.pad(num_tokens)
    num_slots = _round_up(max(len(row.slots) for row in built))
    num_groups = max(row.num_groups for row in built) + 1  # the last one is of slots that nobody sees
    sees = torch.zeros(len(built), max(row.num_segments for row in built), num_groups, dtype=torch.bool)
    for i, row in enumerate(built):
        segments, groups = zip(*row.sights, strict=True)
        sees[i, list(segments), list(groups)] = True
        row.slots += [(0, 0, num_groups - 1)] * (num_slots - len(row.slots))
    num_lookups = max(len(row.lookups) for row in built)
    lookup_columns = torch.zeros(len(built), num_lookups, dtype=torch.long)
    sources = torch.zeros(len(built), num_lookups, max(row.num_blocks for row in built) + 1, dtype=torch.bool)
    for i, row in enumerate(built):
        for j, (column, blocks) in enumerate(row.lookups):
            lookup_columns[i, j] = column
            sources[i, j, blocks] = True
    slots = torch.tensor([row.slots for row in built])
    targets = [(i, column, token_id) for i, row in enumerate(built) for column, token_id in row.targets]
    target_rows, target_columns, target_ids = torch.tensor(targets).T
    key_slots = [i * num_slots + slot for i, row in enumerate(built) for _, seen in row.sequences for slot in seen]
    num_queries = [n for row in built for n, _ in row.sequences]
    num_keys = [len(seen) for row in built for _, seen in row.sequences]
    return Batch(
        torch.tensor([row.token_ids for row in built]),
        torch.tensor([row.positions for row in built]),
        torch.tensor([row.segments for row in built]),
        slots[..., 0],
        slots[..., 1],
        slots[..., 2],
        sees,
        target_rows,
        target_columns,
        target_ids,
        torch.tensor([row.token_blocks for row in built]),
        lookup_columns,
        sources,
        torch.tensor(key_slots),
        _ends(num_queries),
        _ends(num_keys),
        max(num_queries),
        max(num_keys),
    )


def pack(pairs: Sequence[Pair], max_tokens: int) -> list[list[Pair]]:
    """Rows of at most `max_tokens` tokens, first fit with the longest first; a longer pair gets a row of its own."""
    rows: list[list[Pair]] = []
    room: list[int] = []
    for pair in sorted(pairs, key=lambda pair: -pair.num_tokens):
        for i, free in enumerate(room):
            if pair.num_tokens <= free:
                rows[i].append(pair)
                room[i] -= pair.num_tokens
                break
        else:
            rows.append([pair])
            room.append(max_tokens - pair.num_tokens)
    return rows


def both_modes(rows: Sequence[Sequence[Pair]]) -> Batch:
    """Each row twice, in full attention and then in blocks: the first half of the targets is the second half, too."""
    return collate([[pair.full for pair in row] for row in rows] + [[pair.blocks for pair in row] for row in rows])


def _ends(lengths: Sequence[int]) -> Tensor:
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)


def _num_tokens(episode: Episode) -> int:
    return sum(segment.num_tokens for segment in episode)


def _round_up(number: int, multiple: int = 64) -> int:
    """Kernels are faster on round sizes."""
    return -(-number // multiple) * multiple
