"""Draws TTFT against context from a result of ``bench ttft --json``: python benchmarks/plot_ttft.py RESULT.json OUT.svg

RESULT may hold the result itself, or results of several runs by name; then --run names one. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt

LINES = {
    "full_ms": "full prefill",
    "prefix_best_ms": "prefix cache, its last block changed",
    "copied_ms": "the paper's way: blocks copied, keys moved",
    "paper_ms": "the paper's own figures",
    "ttft_ms": "blocks in pages",
    "floor_ms": "floor: weights and KV read once",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--run")
    options = parser.parse_args()
    try:
        result = json.loads(options.result.read_text())
        if options.run:
            result = result[options.run]["ttft"]
        rows = result["rows"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        parser.error(f"{options.result}: holds no result of bench ttft ({error!r}); does it need --run?")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "ttft", "font.size": 9})
    figure, axes = plt.subplots(figsize=(7.5, 4.5))
    for name, label in LINES.items():
        points = [(row["context_tokens"], row[name]) for row in rows if row[name]]
        style = {"linestyle": ":"} if name in ("floor_ms", "paper_ms") else {}
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label, **style)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("tokens of context")
    axes.set_ylabel("time to the first token, ms")
    axes.set_title(f"{result['model']}, {result['dtype']} · {result['device']}")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(options.out, metadata={"Date": None})


if __name__ == "__main__":
    main()
