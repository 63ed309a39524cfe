"""The forward pass of Llama, Mistral, Qwen2, Qwen3 and SmolLM."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every torch user knows
from torch import Tensor

from npc_engine.inference.attention import Attention
from npc_engine.inference.fused import rms_norm
from npc_engine.inference.model_config import ModelConfig
from npc_engine.inference.weights import Weights


class Decoder:
    """A stack of layers over a packed batch of tokens. Holds weights and no state.

    It knows neither positions nor sequences: the `attention` it is given does. Layers can be run one at a time, so that
    long background work can stop between two of them.
    """

    def __init__(self, config: ModelConfig, weights: Weights) -> None:
        self.config = config
        self.weights = weights
        self._eps = torch.tensor(config.rms_norm_eps, device=weights.embedding.device)

    @property
    def dtype(self) -> torch.dtype:
        return self.weights.embedding.dtype

    @property
    def device(self) -> torch.device:
        return self.weights.embedding.device

    def forward(self, token_ids: Tensor, attention: Attention) -> Tensor:
        """token_ids: [tokens] → hidden states [tokens, hidden] after the last layer, before the final norm."""
        hidden = self.embed(token_ids)
        for layer in range(self.config.num_layers):
            hidden = self.layer(layer, hidden, attention)
        return hidden

    def embed(self, token_ids: Tensor) -> Tensor:
        """[tokens] → [tokens, hidden]."""
        return F.embedding(token_ids, self.weights.embedding)

    def layer(self, index: int, hidden: Tensor, attention: Attention) -> Tensor:
        """One layer: [tokens, hidden] → [tokens, hidden]. The argument may be overwritten."""
        layer, config = self.weights.layers[index], self.config
        qkv = layer.qkv(self._norm(hidden, layer.input_norm)).unflatten(-1, (-1, config.head_dim))
        qk, v = qkv.split([config.num_heads + config.num_kv_heads, config.num_kv_heads], dim=1)
        if layer.q_norm is not None and layer.k_norm is not None:
            q, k = qk.split([config.num_heads, config.num_kv_heads], dim=1)
            qk = torch.cat([self._norm(q, layer.q_norm), self._norm(k, layer.k_norm)], dim=1)
        hidden = layer.o.plus(attention(index, qk, v).flatten(1), hidden)
        normed = self._norm(hidden, layer.post_norm)
        return layer.down.plus(layer.gate_up(normed), hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        """[rows, hidden] → [rows, vocab] in float32. Give it only the rows that are sampled from."""
        return self.weights.lm_head(self._norm(hidden, self.weights.final_norm)).float()

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        if x.is_cuda:  # one kernel
            return rms_norm(x, weight, self.config.rms_norm_eps)
        # RMSNorm in float32, as transformers does it, in six operations; F.rms_norm takes nine on a CPU.
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale = torch.addcmul(self._eps, length, length, value=1 / x.shape[-1]).rsqrt_()
        return (x * scale).to(x.dtype) * weight
