"""How conversations keep their contexts: each in a buffer of its own (CPU), or all in pages (GPU)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol, cast

import torch

from npc_engine.blocks import BlockCache, BlockStore, KVShape
from npc_engine.blocks.pages import PagedKV
from npc_engine.errors import ModelError
from npc_engine.inference.attention import Attention, BatchAttention, Context
from npc_engine.inference.context import AssembledContext
from npc_engine.inference.context_policy import ContextPolicy
from npc_engine.inference.context_pool import ConversationContext
from npc_engine.inference.model import Network
from npc_engine.inference.paged_attention import PagedAttention, PagedBackend, ReferenceBackend
from npc_engine.inference.paged_context import PagedContext
from npc_engine.inference.rope import RotaryTable

_PAGE_TOKENS: Final = 32


class StepAttention(Attention, Protocol):
    """Attention for one pass over a packed batch."""

    def advance(self) -> None:
        """Call after the last layer."""
        ...


class ContextKind(Protocol):
    """Creates contexts, and the attention over several of them."""

    def create(self) -> ConversationContext:
        """An empty context."""
        ...

    def attention(self, contexts: Sequence[ConversationContext], num_tokens: Sequence[int]) -> StepAttention:
        """For contexts that were created here; context *i* gets ``num_tokens[i]`` new tokens."""
        ...


class AssembledContexts:
    """A :class:`ContextKind`: :class:`~npc_engine.inference.context.AssembledContext`."""

    def __init__(self, shape: KVShape, rope: RotaryTable, device: torch.device, policy: ContextPolicy) -> None:
        self._shape = shape
        self._rope = rope
        self._device = device
        self._policy = policy

    def create(self) -> AssembledContext:
        return AssembledContext(self._shape, self._rope.inv_freq, self._device, self._policy.weighting)

    def attention(self, contexts: Sequence[ConversationContext], num_tokens: Sequence[int]) -> BatchAttention:
        return BatchAttention(self._rope, cast(Sequence[Context], contexts), num_tokens)


class PagedContexts:
    """A :class:`ContextKind`: :class:`~npc_engine.inference.paged_context.PagedContext`."""

    def __init__(self, cache: BlockCache, memory: PagedKV, rope: RotaryTable, backend: PagedBackend) -> None:
        self._cache = cache
        self._memory = memory
        self._rope = rope
        self._backend = backend

    def create(self) -> PagedContext:
        return PagedContext(self._cache, self._memory, self._rope.inv_freq)

    def attention(self, contexts: Sequence[ConversationContext], num_tokens: Sequence[int]) -> PagedAttention:
        return PagedAttention(
            self._rope, self._memory, self._backend, cast(Sequence[PagedContext], contexts), num_tokens
        )


def open_memory(
    model: Network,
    attention: str,
    *,
    max_block_memory: int,
    max_context_memory: int,
    store: BlockStore | None,
    policy: ContextPolicy = ContextPolicy(),  # noqa: B008 - immutable
) -> tuple[BlockCache, ContextKind]:
    """The cache, and the kind of contexts that goes with it. Sizes in bytes.

    `attention`: ``buffers`` for a buffer per conversation; ``sdpa`` and ``triton`` for pages, with torch's operations
    or with the fused kernel; ``auto`` for what suits the device. Policies that recompute or weigh keys get buffers.
    Raises :class:`ModelError` for a kernel that can't run here.
    """
    device, shape = model.decoder.device, model.kv_shape
    if attention in ("auto", "buffers") or policy.relink is not None or policy.weighting is not None:
        cache = BlockCache(shape, device, max_bytes=max_block_memory, store=store)
        return cache, AssembledContexts(shape, model.rope, device, policy)
    backend = _backend(attention, model)
    memory = PagedKV.of_bytes(shape, max_block_memory + max_context_memory, page_tokens=_PAGE_TOKENS, device=device)
    cache = BlockCache(shape, device, max_bytes=max_block_memory, store=store, memory=memory)
    return cache, PagedContexts(cache, memory, model.rope, backend)


def _backend(name: str, model: Network) -> PagedBackend:
    if name == "sdpa":
        return ReferenceBackend(model.rope.inv_freq)
    if model.decoder.device.type != "cuda":
        raise ModelError(f"--attention triton runs on a GPU, not on {model.decoder.device}; try --attention auto")
    try:
        from npc_engine.inference.triton_attention import TritonBackend
    except ImportError as error:
        raise ModelError("--attention triton needs triton, which is not installed; try --attention sdpa") from error
    return TritonBackend(model.rope.inv_freq, max_positions=model.config.max_position_embeddings)
