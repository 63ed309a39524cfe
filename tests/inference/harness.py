"""Runs the engine's own parts on a tiny checkpoint, without threads, disk or text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from npc_engine.blocks import Block, BlockCache, BlockStore, KVShape, Layout, ModelIdentity
from npc_engine.inference.attention import BatchAttention, Context
from npc_engine.inference.context import AssembledContext, SegmentedContext
from npc_engine.inference.context_kind import AssembledContexts
from npc_engine.inference.context_policy import ContextPolicy
from npc_engine.inference.decoder import Decoder
from npc_engine.inference.encoding import EncodingJob, ready_to_encode
from npc_engine.inference.model_config import ModelConfig
from npc_engine.inference.rope import RotaryTable
from npc_engine.inference.weights import load_weights

CPU = torch.device("cpu")


class Harness:
    """A decoder with a block cache in front of it."""

    def __init__(self, folder: Path, *, store: BlockStore | None = None) -> None:
        self.config = ModelConfig.from_dict(json.loads((folder / "config.json").read_text()))
        weights = load_weights(sorted(folder.glob("*.safetensors")), self.config, device=CPU, dtype=torch.float32)
        self.decoder = Decoder(self.config, weights)
        self.rope = RotaryTable(self.config.rope, self.config.head_dim, CPU)
        self.identity = ModelIdentity(str(folder), None, "float32", str(self.config.rope))
        self.shape = KVShape(self.config.num_layers, self.config.num_kv_heads, self.config.head_dim, torch.float32)
        self.cache = BlockCache(self.shape, CPU, max_bytes=1 << 30, store=store)
        self.kind = AssembledContexts(self.cache, self.rope, CPU, ContextPolicy())

    def block(self, token_ids: Sequence[int], *parents: Block) -> Block:
        return Block.behind(self.identity, parents, token_ids)

    @torch.inference_mode()
    def encode(self, blocks: Sequence[Block]) -> int:
        """Encode what is missing, in as few packed batches as parents allow. Returns the tokens that were computed."""
        num_tokens = 0
        by_id = {block.id: block for block in blocks}
        while missing := self.cache.acquire(blocks):
            wave = ready_to_encode(missing, max_tokens=1 << 20)
            job = EncodingJob(self.decoder, self.kind, wave, {p: by_id[p] for block in wave for p in block.parents})
            while not job.is_done:
                job.advance()
            for block, kv in job.results():
                self.cache.put(block, kv)
            num_tokens += job.num_tokens
        return num_tokens

    def assembled(self, layout: Layout) -> AssembledContext:
        context = AssembledContext(self.shape, self.rope.inv_freq, CPU)
        with torch.inference_mode():
            context.place(layout, self.cache.get)
        return context

    def segmented(self, layout: Layout, max_new_tokens: int = 64) -> SegmentedContext:
        return SegmentedContext(
            self.shape, self.rope.inv_freq, CPU, layout, self.cache.get, max_new_tokens=max_new_tokens
        )

    @torch.inference_mode()
    def run(self, context: Context, token_ids: Sequence[int]) -> Tensor:
        """Compute these tokens behind a context. Returns their logits: [tokens, vocab]."""
        attention = BatchAttention(self.rope, [context], [len(token_ids)])
        hidden = self.decoder.forward(torch.tensor(list(token_ids)), attention)
        context.advance(len(token_ids))
        return self.decoder.logits(hidden)

    def logits(self, blocks: Sequence[Block], final: Sequence[int], *, way: str = "assembled") -> Tensor:
        """Encode, lay out in this order, and run the final block."""
        self.encode(blocks)
        layout = Layout.of(blocks)
        context = self.assembled(layout) if way == "assembled" else self.segmented(layout)
        return self.run(context, final)
