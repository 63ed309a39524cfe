"""Re-linking: the first tokens of each block, computed again with everything in front of them in sight.

Blocks that were encoded alone each begin as if nothing stood before them. Computing their first tokens again, where
they lie, removes most of that (LegoLink of EPIC, arXiv 2410.15332). It depends on the layout, so it belongs to an
assembled context, is done in idle time and is lost behind a block that changes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every torch user knows
from torch import Tensor

from npc_engine.blocks import BlockKV, Placement
from npc_engine.blocks.positions import rotate
from npc_engine.inference.context import AssembledContext
from npc_engine.inference.decoder import Decoder
from npc_engine.inference.rope import RotaryTable


class Relinking:
    """Recomputes the first `num_tokens` tokens of every block behind the header, one layer at a time.

    Nothing in the context changes before :meth:`commit`; the job is void once the context is placed anew.
    """

    def __init__(self, decoder: Decoder, rope: RotaryTable, context: AssembledContext, num_tokens: int) -> None:
        self._decoder = decoder
        self._context = context
        self.placements = context.placed
        heads = [_head(placement, num_tokens) for placement in self.placements[max(1, context.num_relinked) :]]
        token_ids = [token_id for placement, n in heads for token_id in placement.block.token_ids[:n]]
        rows = [row for placement, n in heads for row in range(placement.row, placement.row + n)]
        self._rows = torch.tensor(rows, dtype=torch.long, device=decoder.device)
        cos_sin = rope.at([(placement.position, placement.position + n) for placement, n in heads] or [(0, 1)])
        self._cos, self._sin = cos_sin
        self._mask = self._visible(context.num_tokens)
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._hidden = decoder.embed(torch.tensor(token_ids, dtype=torch.long, device=decoder.device))

    @property
    def is_done(self) -> bool:
        return not len(self._rows) or len(self._keys) == self._decoder.config.num_layers

    def advance(self) -> None:
        """Run one layer."""
        self._hidden = self._decoder.layer(len(self._keys), self._hidden, self._attend)

    def commit(self) -> bool:
        """Write the new keys and values, unless the context has changed meanwhile. Returns whether it was done."""
        if self._context.placed != self.placements:
            return False
        if len(self._rows):
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


def _head(placement: Placement, num_tokens: int) -> tuple[Placement, int]:
    """A block and how many of its tokens are recomputed. A turn was computed behind everything: none."""
    is_turn = len(placement.block.parents) > 1
    return placement, 0 if is_turn else min(num_tokens, placement.block.num_tokens)
