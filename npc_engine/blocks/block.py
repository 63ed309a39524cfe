"""A block and its identity."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NewType

BlockId = NewType("BlockId", bytes)


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """Everything besides text that keys and values depend on.

    `fingerprint` is the digest of the checkpoint's weights and configuration, `adapter` that of a merged adapter,
    `rope` describes the rotary embedding in full.
    """

    fingerprint: str
    adapter: str | None
    dtype: str
    rope: str

    def digest(self) -> bytes:
        """32 bytes that stand for this identity in every block id."""
        fields = json.dumps([self.fingerprint, self.adapter, self.dtype, self.rope])
        return hashlib.blake2b(fields.encode(), digest_size=32).digest()


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of prompt that is encoded on its own, behind its parents and nothing else.

    `start` is the local position of its first token: the number of tokens of its parents, which are laid out one after
    the other in front of it while it is encoded. Where the block lies in a prompt is not its business.
    """

    id: BlockId
    token_ids: tuple[int, ...]
    start: int
    parents: tuple[BlockId, ...]

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @classmethod
    def behind(cls, identity: ModelIdentity, parents: Sequence[Block], token_ids: Sequence[int]) -> Block:
        """The block of these tokens behind these parents. Its id depends on its arguments alone: no position, no time.

        Parents = () or (header,) is the paper's block; parents = everything before it is full attention.
        """
        if not token_ids:
            raise ValueError("a block needs at least one token")
        parent_ids = tuple(parent.id for parent in parents)
        return cls(
            id=_block_id(identity, parent_ids, token_ids),
            token_ids=tuple(token_ids),
            start=sum(parent.num_tokens for parent in parents),
            parents=parent_ids,
        )


def _block_id(identity: ModelIdentity, parents: Sequence[BlockId], token_ids: Sequence[int]) -> BlockId:
    digest = hashlib.blake2b(digest_size=32)
    digest.update(identity.digest())
    digest.update(len(parents).to_bytes(4, "little"))  # so that a parent's bytes can't pass for tokens
    for parent in parents:
        digest.update(parent)
    digest.update(struct.pack(f"<{len(token_ids)}q", *token_ids))
    return BlockId(digest.digest())
