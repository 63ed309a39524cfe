"""Re-linking: some tokens of the blocks, computed again with everything in front of them in sight.

Blocks that were encoded alone each begin as if nothing stood before them. Computing their first tokens again, where
they lie, removes much of that (LegoLink of EPIC, arXiv 2410.15332); so does computing those again whose keys would
change the most (CacheBlend, arXiv 2405.16444). It depends on the layout, so it belongs to an assembled context, is done
in idle time and is lost behind a block that changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every torch user knows
from torch import Tensor

from npc_engine.blocks import BlockKV, Placement
from npc_engine.blocks.positions import rotate
from npc_engine.inference.context import AssembledContext
from npc_engine.inference.decoder import Decoder
from npc_engine.inference.rope import RotaryTable

_PROBED_LAYERS: Final = 2  # the first layer's keys depend on the token alone


@dataclass(frozen=True, slots=True, kw_only=True)
class RelinkExtent:
    """How much is computed again: the first `num_tokens` of every block, or the `share` that deviates most."""

    num_tokens: int = 0
    share: float = 0.0


class _Token(NamedTuple):
    row: int
    position: int
    token_id: int


class Relinking:
    """Recomputes tokens of the blocks behind the header, one layer at a time.

    To find those that deviate most it first computes all of them for two layers. Nothing in the context changes before
    :meth:`commit`; the job is void once the context is placed anew.
    """

    def __init__(self, decoder: Decoder, rope: RotaryTable, context: AssembledContext, extent: RelinkExtent) -> None:
        self._decoder = decoder
        self._rope = rope
        self._context = context
        self._share = extent.share
        self.placements = context.placed
        unlinked = self.placements[max(1, context.num_relinked) :]
        self._begin([token for each in unlinked for token in _tokens(each, extent)])

    def _begin(self, tokens: Sequence[_Token]) -> None:
        device = self._decoder.device
        self._tokens = tokens
        self._rows = torch.tensor([token.row for token in tokens], dtype=torch.long, device=device)
        self._cos, self._sin = self._rope.at([(t.position, t.position + 1) for t in tokens] or [(0, 1)])
        self._mask = self._visible(self._context.num_tokens)
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        token_ids = [token.token_id for token in tokens]
        self._hidden = self._decoder.embed(torch.tensor(token_ids, dtype=torch.long, device=device))

    @property
    def is_done(self) -> bool:
        return not self._tokens or (not self._share and len(self._keys) == self._decoder.config.num_layers)

    def advance(self) -> None:
        """Run one layer."""
        self._hidden = self._decoder.layer(len(self._keys), self._hidden, self._attend)
        if self._share and len(self._keys) == min(_PROBED_LAYERS, self._decoder.config.num_layers):
            chosen = self._most_deviating(round(self._share * len(self._tokens)))
            self._share = 0.0
            self._begin(chosen)

    def _most_deviating(self, number: int) -> list[_Token]:
        layer = len(self._keys) - 1
        cached, _ = self._context.rows_of(layer)
        deviation = (self._keys[layer] - cached[:, self._rows]).float().square().sum(dim=(0, 2))
        return [self._tokens[i] for i in sorted(deviation.topk(number).indices.tolist())]

    def commit(self) -> bool:
        """Write the new keys and values, unless the context has changed meanwhile. Returns whether it was done."""
        if self._context.placed != self.placements:
            return False
        if self._tokens:
            kv = BlockKV(torch.stack(self._keys), torch.stack(self._values))
            self._context.relink(self._rows, kv, self.placements)
        return True

    def _attend(self, layer: int, qk: Tensor, v: Tensor) -> Tensor:
        num_kv_heads = v.shape[1]
        q, k = rotate(qk, self._cos, self._sin).split([qk.shape[1] - num_kv_heads, num_kv_heads], dim=1)
        new_k, new_v = k.transpose(0, 1), v.transpose(0, 1)
        self._keys.append(new_k)
        self._values.append(new_v)
        old_k, old_v = self._context.rows_of(layer)
        out: Tensor = F.scaled_dot_product_attention(
            q.transpose(0, 1)[None],
            torch.cat([old_k, new_k], dim=1)[None],
            torch.cat([old_v, new_v], dim=1)[None],
            attn_mask=self._mask,
            enable_gqa=True,
        )
        return out[0].transpose(0, 1)

    def _visible(self, num_rows: int) -> Tensor:
        """Which old and new rows each recomputed token sees: [tokens, num_rows + tokens], bool.

        What lies in front of it or is itself; of a recomputed token only the new form.
        """
        old = torch.arange(num_rows, device=self._rows.device)
        kept = torch.ones(num_rows, dtype=torch.bool, device=self._rows.device)
        kept[self._rows] = False
        seen_old = (old < self._rows[:, None]) & kept
        return torch.cat([seen_old, self._rows <= self._rows[:, None]], dim=1)


def _tokens(placement: Placement, extent: RelinkExtent) -> Iterator[_Token]:
    """What may be recomputed of a block. A turn was computed behind everything: nothing."""
    block = placement.block
    if len(block.parents) > 1:
        return
    number = block.num_tokens if extent.share else min(extent.num_tokens, block.num_tokens)
    for offset, token_id in enumerate(block.token_ids[:number]):
        yield _Token(placement.row + offset, placement.position + offset, token_id)
