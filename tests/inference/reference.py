"""The independent reference: transformers, and key rotation written out in float64.

Shares no code with the engine, so that an error in ours can't cancel out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

LayerKV = tuple[Tensor, Tensor]  # k, v: [kv_heads, tokens, head_dim]


class Reference:
    """A checkpoint run by transformers, float32, eager attention."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()

    @torch.inference_mode()
    def full(self, token_ids: Sequence[int], num_rows: int) -> Tensor:
        """Logits of the last `num_rows` tokens with plain full attention."""
        return self.model(torch.tensor([list(token_ids)])).logits[0, -num_rows:]

    @torch.inference_mode()
    def block_mask(self, blocks: Sequence[Sequence[int]], final: Sequence[int]) -> Tensor:
        """One pass over the whole prompt with global positions and a 4-D mask: a token sees its own block's past, the
        final
        block sees everything. Logits of the final block."""
        lengths = [len(block) for block in (*blocks, final)]
        owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
        num_tokens = len(owner)
        causal = torch.ones(num_tokens, num_tokens, dtype=torch.bool).tril()
        visible = causal & ((owner[:, None] == owner[None]) | (owner[:, None] == len(blocks)))
        mask = torch.where(visible, 0.0, torch.finfo(torch.float32).min)[None, None]
        token_ids = torch.tensor([[token_id for block in (*blocks, final) for token_id in block]])
        positions = torch.arange(num_tokens)[None]
        logits = self.model(token_ids, attention_mask=mask, position_ids=positions).logits
        return logits[0, -len(final) :]

    @torch.inference_mode()
    def keys_and_values(self, token_ids: Sequence[int]) -> list[LayerKV]:
        """Per layer, the keys (rotated from position 0) and values of a plain pass."""
        cache = DynamicCache()
        self.model(torch.tensor([list(token_ids)]), past_key_values=cache)
        return [(layer.keys[0], layer.values[0]) for layer in cache.layers]

    def moved(self, kv: Sequence[LayerKV], delta: int) -> list[LayerKV]:
        """The same keys, `delta` positions further on."""
        inv_freq = self.model.model.rotary_emb.inv_freq.double()
        angles = torch.cat([inv_freq, inv_freq]) * delta
        return [(_rotate_half_double(k, angles), v) for k, v in kv]

    @torch.inference_mode()
    def on_cache(self, kv: Sequence[Sequence[LayerKV]], final: Sequence[int]) -> Tensor:
        """Run the final block behind these pieces of cache, laid one after the other. Logits of the final block."""
        cache = DynamicCache()
        for layer in range(len(kv[0])):
            keys = torch.cat([piece[layer][0] for piece in kv], dim=1)[None]
            values = torch.cat([piece[layer][1] for piece in kv], dim=1)[None]
            cache.update(keys, values, layer)
        return self.model(torch.tensor([list(final)]), past_key_values=cache).logits[0]


def _rotate_half_double(k: Tensor, angles: Tensor) -> Tensor:
    k = k.double()
    half = k.shape[-1] // 2
    turned = torch.cat([-k[..., half:], k[..., :half]], dim=-1)
    return (k * angles.cos() + turned * angles.sin()).float()
