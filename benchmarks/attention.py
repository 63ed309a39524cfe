"""The attention kernel alone: which cut is fastest, and how close is it to the memory's bandwidth?

Regime: one layer of Llama-3.1-8B (32 heads, 8 key/value heads of 128), bfloat16, blocks of 160 tokens at random deltas;
a final block of 50 tokens, or one token of each of 64 sequences. Every cut is checked against float64 first, then timed
as a CUDA graph over several layers of keys, so that caches don't serve it. Run on a GPU: python benchmarks/attention.py
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics

import numpy as np
import torch

from npc_engine.blocks import KVShape
from npc_engine.blocks.pages import PagedKV
from npc_engine.blocks.positions import shift
from npc_engine.inference.device import copy_bandwidth, device_name
from npc_engine.inference.paged_attention import CachedPages, PagedStep, SequencePages
from npc_engine.inference.rope import RotaryTable
from npc_engine.inference.rope_config import RopeConfig

try:
    from npc_engine.inference.triton_attention import TritonBackend, Tuning
except ImportError:
    raise SystemExit("benchmarks/attention.py needs triton, which comes with PyTorch's CUDA builds") from None

HEADS, KV_HEADS, DIM, BLOCK = 32, 8, 128, 160
NUM_LAYERS = 8  # their keys and values exceed the L2 cache from 2K of context on
NUM_RUNS = 15


def build(context: int, queries: int, sequences: int, page: int, device: torch.device) -> tuple[PagedKV, PagedStep]:
    pages_per_block = -(-BLOCK // page)
    blocks = context // BLOCK
    own = -(-queries // page)
    shape = KVShape(NUM_LAYERS, KV_HEADS, DIM, torch.bfloat16)
    memory = PagedKV(shape, num_pages=sequences * (blocks * pages_per_block + own), page_tokens=page, device=device)
    memory.k.normal_()
    memory.v.normal_()
    rng = np.random.default_rng(0)
    made = []
    for _ in range(sequences):
        cached = [
            CachedPages.of(memory.pool.allocate(pages_per_block), BLOCK * i + int(rng.integers(8)), BLOCK, page)
            for i in range(blocks)
        ]
        new = np.array(memory.pool.allocate(own), dtype=np.int32)
        made.append(SequencePages(CachedPages.joined(cached), new, 0, context))
    return memory, PagedStep.of(made, [[0] * queries] * sequences, page, device)


def exact(q: torch.Tensor, memory: PagedKV, step: PagedStep, rope: RotaryTable) -> torch.Tensor:
    """The first sequence's first layer in float64."""
    num_queries, size = int(step.query_starts[1]), step.page_tokens
    keys, values = [], []
    own = (int(step.own_starts[0]), num_queries)
    for page, num_tokens in (*step.runs[: int(step.run_starts[1])].tolist(), own):
        offset = torch.arange(num_tokens, device=q.device)
        rows = step.pages[page + offset // size, 0] * size + offset % size
        keys.append(shift(memory.k[0][:, rows].double(), int(step.pages[page, 1]), rope.inv_freq.double()))
        values.append(memory.v[0][:, rows].double())
    k = torch.cat(keys, 1).repeat_interleave(HEADS // KV_HEADS, 0)
    v = torch.cat(values, 1).repeat_interleave(HEADS // KV_HEADS, 0)
    scores = torch.einsum("qhd,hkd->hqk", q[:num_queries].double(), k) * DIM**-0.5
    future = torch.ones(num_queries, k.shape[1], dtype=torch.bool, device=q.device).triu(1 + k.shape[1] - num_queries)
    return torch.einsum("hqk,hkd->qhd", scores.masked_fill(future, -torch.inf).softmax(-1), v)


def time_ms(backend: TritonBackend, q: torch.Tensor, memory: PagedKV, step: PagedStep) -> float:
    """Of one layer, in the median."""

    def layers() -> None:
        for layer in range(NUM_LAYERS):
            backend.attend(q, memory.k[layer], memory.v[layer], step)

    layers()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        layers()
    times = []
    for _ in range(NUM_RUNS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / NUM_LAYERS)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="8192x50x1,32768x50x1,4096x1x64", help="context x queries x sequences")
    parser.add_argument("--pages", default="32,64")
    parser.add_argument("--rows", default="16,64,128,256")
    parser.add_argument("--warps", default="4,8")
    parser.add_argument("--stages", default="2,3")
    parser.add_argument("--programs", default="1,2", help="programs per processor")
    parser.add_argument("--turn", default="0,1", help="1: queries are turned; 0: keys are moved")
    parser.add_argument("--keys", default="32,64", help="at a time")
    parser.add_argument("--best", type=int, default=8, help="how many cuts to show of each case")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("it needs a CUDA device")

    def numbers(text: str) -> list[int]:
        return [int(each) for each in text.split(",")]

    device = torch.device("cuda")
    rope = RotaryTable(RopeConfig(theta=500_000.0), DIM, device)
    bandwidth = copy_bandwidth(device)
    print(device_name(device), f"copy {bandwidth / 1e9:.0f} GB/s")
    for case in options.cases.split(","):
        context, queries, sequences = (int(each) for each in case.split("x"))
        for page in numbers(options.pages):
            memory, step = build(context, queries, sequences, page, device)
            q = torch.randn(queries * sequences, HEADS, DIM, device=device, dtype=torch.bfloat16)
            expected = exact(q, memory, step, rope)
            floor_ms = 2 * context * sequences * KV_HEADS * DIM * 2 / bandwidth * 1000
            rows = [each for each in numbers(options.rows) if (each == 16) == (queries * 4 <= 16)]
            found = []
            for cut in itertools.product(
                rows,
                [each > 0 for each in numbers(options.turn)],
                numbers(options.keys),
                numbers(options.warps),
                numbers(options.stages),
                numbers(options.programs),
            ):
                if (cut[0] == 256 and cut[3] < 8) or (not cut[1] and cut[2] != page):
                    continue  # too many registers; moved keys come page by page
                backend = TritonBackend(rope, max_positions=65_536, tuning=Tuning(*cut))
                try:
                    out = backend.attend(q, memory.k[0], memory.v[0], step)[:queries]
                    error = float((out.double() - expected).norm() / expected.norm())
                    found.append((time_ms(backend, q, memory, step), error, cut))
                except Exception as error:  # too many registers or too much shared memory
                    print("failed", cut, str(error)[:80])
            for ms, error, cut in sorted(found, key=lambda each: each[0])[: options.best]:
                row = {"case": case, "page": page} | Tuning(*cut)._asdict() | {"us": round(1000 * ms, 1)}
                print(json.dumps(row | {"floor_us": round(1000 * floor_ms, 1), "error": round(error, 5)}), flush=True)


if __name__ == "__main__":
    main()
