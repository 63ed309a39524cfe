"""One pass of the model over new tokens of some contexts: operation by operation, or as a recording of its shape."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import torch
from torch import Tensor

from npc_engine.inference.attention import Attention
from npc_engine.inference.context_pool import NewTokens
from npc_engine.inference.decoder import Decoder
from npc_engine.inference.paged_attention import Ints, PagedAttention, PagedStep, StepShape, pack, shape_of

if TYPE_CHECKING:
    from npc_engine.inference.context_kind import ContextKind, PagedContexts

TokenIds = Sequence[Sequence[int]]

_FINAL_BUCKETS: Final = (16, 32, 48, 64, 96, 128, 192, 256)
_DECODE_BUCKETS: Final = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
_MAX_RUNS: Final = 1 << 14  # of all sequences of a step
_MAX_PAGES: Final = 1 << 16
_NUM_WARM_UPS: Final = 2  # passes before a capture: kernels are compiled, and libraries choose theirs


class Step(NamedTuple):
    """What the decoder needs of one pass. `token_ids`: [tokens]."""

    token_ids: Tensor
    attention: Attention


class ForwardPass(Protocol):
    """Computes new tokens and stores their keys and values."""

    def __call__(self, contexts: Sequence[NewTokens], token_ids: TokenIds, num_rows: int = 1) -> Tensor:
        """Context *i* gets ``token_ids[i]``.

        Returns the logits of the last `num_rows` tokens of each sequence: [rows, vocab], float32. Valid until the next
        pass.
        """
        ...

    def prepare(self, max_conversations: int) -> float:
        """Do what first uses would cost later, for so many conversations at once. Returns the seconds it took."""
        ...


class EagerPass:
    """Any device, any number of tokens."""

    def __init__(self, decoder: Decoder, kind: ContextKind) -> None:
        self._decoder = decoder
        self._kind = kind

    def __call__(self, contexts: Sequence[NewTokens], token_ids: TokenIds, num_rows: int = 1) -> Tensor:
        step = self._kind.step(contexts, token_ids)
        hidden = self._decoder.forward(step.token_ids, step.attention)
        rows, end = [], 0
        for context, new in zip(contexts, token_ids, strict=True):
            context.advance(len(new))
            end += len(new)
            rows.append(hidden[end - num_rows : end])
        return self._decoder.logits(torch.cat(rows))

    def prepare(self, max_conversations: int) -> float:
        return 0.0


def bucket_for(lengths: Sequence[int]) -> StepShape | None:
    """The shape of the recording that serves so many new tokens per sequence; None if there is none.

    Either one sequence with a final block, or any number that decode.
    """
    if len(lengths) == 1 and lengths[0] > 1:
        size = next((size for size in _FINAL_BUCKETS if size >= lengths[0]), None)
        return None if size is None else StepShape(size, 1, _MAX_RUNS, _MAX_PAGES, size)
    if max(lengths) > 1:
        return None
    number = next((number for number in _DECODE_BUCKETS if number >= len(lengths)), None)
    return None if number is None else StepShape(number, number, _MAX_RUNS, _MAX_PAGES, 1)


class Recording(NamedTuple):
    """A pass that can be run again: `replay` computes `logits` anew, from what lies in the same tensors by then."""

    replay: Callable[[], object]
    logits: Tensor


Recorder = Callable[[Callable[[], Tensor]], Recording]
"""Makes a recording of a pass."""


class BucketedPass:
    """One recording per shape, made when it is needed first or by :meth:`prepare`; anything else is launched as it is.

    A recording reads page tables, offsets and lengths from one tensor, so it serves any layout of its shape.
    """

    def __init__(self, decoder: Decoder, kind: PagedContexts, record: Recorder) -> None:
        self._decoder = decoder
        self._kind = kind
        self._record = record
        self._eager = EagerPass(decoder, kind)
        self._recordings: dict[StepShape, Recording] = {}
        self._numbers = torch.zeros(5 * _MAX_PAGES, dtype=torch.int32, device=decoder.device)
        self._staging = torch.zeros_like(self._numbers, device="cpu")
        if decoder.device.type == "cuda":
            self._staging = self._staging.pin_memory()

    def __call__(self, contexts: Sequence[NewTokens], token_ids: TokenIds, num_rows: int = 1) -> Tensor:
        shape = bucket_for([len(new) for new in token_ids]) if num_rows == 1 else None
        if shape is None:
            return self._eager(contexts, token_ids, num_rows)
        sequences = [self._kind.pages_of(context, len(new)) for context, new in zip(contexts, token_ids, strict=True)]
        needed = shape_of(sequences, token_ids)
        if needed.num_runs > shape.num_runs or needed.num_pages > shape.num_pages:
            return self._eager(contexts, token_ids, num_rows)
        recording = self._recordings.get(shape) or self._make(shape)
        self._write(pack(sequences, token_ids, shape, self._kind.page_tokens, spare_row=self._kind.spare_row))
        recording.replay()
        for context, new in zip(contexts, token_ids, strict=True):
            context.advance(len(new))
        return recording.logits[: len(sequences)]

    def prepare(self, max_conversations: int) -> float:
        start_s = time.perf_counter()
        final = [StepShape(size, 1, _MAX_RUNS, _MAX_PAGES, size) for size in _FINAL_BUCKETS]
        last = next((i for i, number in enumerate(_DECODE_BUCKETS) if number >= max_conversations), None)
        decoding = _DECODE_BUCKETS[: None if last is None else last + 1]
        shapes = [*final, *(StepShape(number, number, _MAX_RUNS, _MAX_PAGES, 1) for number in decoding)]
        for shape in sorted(shapes, reverse=True):  # the largest first: the others' memory fits into its
            if shape not in self._recordings:
                self._make(shape)
        return time.perf_counter() - start_s

    def _make(self, shape: StepShape) -> Recording:
        # With no sequences in it, so that a recorder may run it.
        self._write(pack([], [], shape, self._kind.page_tokens, spare_row=self._kind.spare_row))
        step = PagedStep.over(self._numbers, shape, self._kind.page_tokens)
        with torch.inference_mode():
            recording = self._record(lambda: self._run(step))
        self._recordings[shape] = recording
        return recording

    def _run(self, step: PagedStep) -> Tensor:
        attention = PagedAttention(self._kind.memory, self._kind.backend, step)
        hidden = self._decoder.forward(step.token_ids, attention)
        return self._decoder.logits(hidden.index_select(0, step.last_tokens))

    def _write(self, numbers: Ints) -> None:
        source = torch.from_numpy(numbers)
        self._staging[: len(source)] = source
        self._numbers[: len(source)].copy_(self._staging[: len(source)], non_blocking=True)


class CudaGraphs:
    """A :data:`Recorder` whose recordings are CUDA graphs, which share their memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Callable[[], Tensor]) -> Recording:
        side = torch.cuda.Stream(self._device)
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):
            for _ in range(_NUM_WARM_UPS):
                run()
        torch.cuda.current_stream(self._device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Other threads may copy blocks from the device meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            logits = run()
        torch.cuda.synchronize(self._device)
        return Recording(graph.replay, logits)
