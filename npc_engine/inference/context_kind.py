"""How conversations keep their contexts: each in a buffer of its own (CPU), or all in pages (GPU)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol, cast

import torch

from npc_engine.blocks import BlockCache, BlockKV, BlockStore, Layout
from npc_engine.blocks.pages import PagedKV
from npc_engine.errors import BlockMemoryError, ModelError
from npc_engine.inference.attention import BatchAttention, Context
from npc_engine.inference.context import AssembledContext, SegmentedContext
from npc_engine.inference.context_policy import ContextPolicy
from npc_engine.inference.context_pool import ConversationContext, NewTokens
from npc_engine.inference.decoder import Decoder
from npc_engine.inference.forward_pass import BucketedPass, CudaGraphs, EagerPass, ForwardPass, Step, TokenIds
from npc_engine.inference.model import Network
from npc_engine.inference.paged_attention import (
    PagedAttention,
    PagedBackend,
    PagedStep,
    ReferenceBackend,
    SequencePages,
)
from npc_engine.inference.paged_context import PagedContext
from npc_engine.inference.rope import RotaryTable

_PAGE_TOKENS: Final = 32
_MAX_ENCODING_TOKENS: Final = 8192


class EncodingContext(NewTokens, Protocol):
    """A context in which one block is encoded, behind its parents."""

    @property
    def new_kv(self) -> BlockKV:
        """The new tokens' keys and values."""
        ...

    def close(self) -> None:
        """Give its memory back."""
        ...


class ContextKind(Protocol):
    """Creates contexts, and steps over several of them."""

    @property
    def max_encoding_tokens(self) -> int:
        """How many tokens of blocks are encoded together."""
        ...

    def create(self) -> ConversationContext:
        """An empty context."""
        ...

    def encoding_context(self, parents: Layout, num_tokens: int) -> EncodingContext:
        """For a block of so many tokens. Its parents have to be held while it is used."""
        ...

    def step(self, contexts: Sequence[NewTokens], token_ids: TokenIds) -> Step:
        """One pass over contexts that were created here; context *i* gets ``token_ids[i]``."""
        ...

    def forward_pass(self, decoder: Decoder) -> ForwardPass:
        """The fastest pass over such contexts."""
        ...


class AssembledContexts:
    """A :class:`ContextKind`: :class:`~npc_engine.inference.context.AssembledContext`."""

    max_encoding_tokens = 1024

    def __init__(self, cache: BlockCache, rope: RotaryTable, device: torch.device, policy: ContextPolicy) -> None:
        self._cache = cache
        self._rope = rope
        self._device = device
        self._policy = policy

    def create(self) -> AssembledContext:
        return AssembledContext(self._cache.shape, self._rope.inv_freq, self._device, self._policy.weighting)

    def encoding_context(self, parents: Layout, num_tokens: int) -> SegmentedContext:
        return SegmentedContext(
            self._cache.shape, self._rope.inv_freq, self._device, parents, self._cache.get, max_new_tokens=num_tokens
        )

    def step(self, contexts: Sequence[NewTokens], token_ids: TokenIds) -> Step:
        packed = torch.tensor([token_id for ids in token_ids for token_id in ids], device=self._device)
        lengths = [len(ids) for ids in token_ids]
        return Step(packed, BatchAttention(self._rope, cast(Sequence[Context], contexts), lengths))

    def forward_pass(self, decoder: Decoder) -> EagerPass:
        return EagerPass(decoder, self)


class PagedContexts:
    """A :class:`ContextKind`: :class:`~npc_engine.inference.paged_context.PagedContext`."""

    def __init__(self, cache: BlockCache, memory: PagedKV, rope: RotaryTable, backend: PagedBackend) -> None:
        self._cache = cache
        self._rope = rope
        self.memory = memory
        self.backend = backend
        (page,) = memory.pool.allocate(1)
        self.spare_row = page * memory.page_tokens
        """Where keys and values go that nobody needs."""

    @property
    def page_tokens(self) -> int:
        return self.memory.page_tokens

    @property
    def max_encoding_tokens(self) -> int:
        # Encoded blocks are copied into the cache's pages, and short ones fill a page with half a page of tokens.
        return min(_MAX_ENCODING_TOKENS, self.memory.pool.num_free * self.page_tokens // 4)

    def create(self) -> PagedContext:
        return PagedContext(self._cache, self.memory, self._rope.inv_freq)

    def encoding_context(self, parents: Layout, num_tokens: int) -> PagedContext:
        context = self.create()
        try:
            context.place(parents, self._cache.get, room=num_tokens)
        except BlockMemoryError:
            context.close()
            raise
        return context

    def pages_of(self, context: NewTokens, num_tokens: int) -> SequencePages:
        """What the next tokens of a context see, and where they go."""
        return cast(PagedContext, context).reserve(num_tokens)

    def step(self, contexts: Sequence[NewTokens], token_ids: TokenIds) -> Step:
        sequences = [self.pages_of(context, len(new)) for context, new in zip(contexts, token_ids, strict=True)]
        step = PagedStep.of(sequences, token_ids, self.page_tokens, self.memory.k.device)
        return Step(step.token_ids, PagedAttention(self.memory, self.backend, step))

    def forward_pass(self, decoder: Decoder) -> ForwardPass:
        is_captured = decoder.device.type == "cuda" and not isinstance(self.backend, ReferenceBackend)
        return BucketedPass(decoder, self, CudaGraphs(decoder.device)) if is_captured else EagerPass(decoder, self)


def resolve_attention(attention: str) -> str:
    """What ``auto`` stands for: buffers, until the tests of the kernels have passed on a GPU."""
    return "buffers" if attention == "auto" else attention


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
    if resolve_attention(attention) == "buffers" or policy.relink is not None or policy.weighting is not None:
        cache = BlockCache(shape, device, max_bytes=max_block_memory, store=store)
        return cache, AssembledContexts(cache, model.rope, device, policy)
    backend = _backend(attention, model)
    memory = PagedKV.of_bytes(shape, max_block_memory + max_context_memory, page_tokens=_PAGE_TOKENS, device=device)
    cache = BlockCache(shape, device, max_bytes=max_block_memory, store=store, memory=memory)
    return cache, PagedContexts(cache, memory, model.rope, backend)


def _backend(name: str, model: Network) -> PagedBackend:
    if name == "sdpa":
        return ReferenceBackend(model.rope)
    if model.decoder.device.type != "cuda":
        raise ModelError(f"--attention triton runs on a GPU, not on {model.decoder.device}; try --attention auto")
    try:
        from npc_engine.inference.triton_attention import TritonBackend
    except ImportError as error:
        raise ModelError("--attention triton needs triton, which is not installed; try --attention sdpa") from error
    return TritonBackend(model.rope, max_positions=model.config.max_position_embeddings)
