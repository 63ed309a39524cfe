"""The model card of a tuning run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from npc_engine.tuning.run_log import Report
from npc_engine.tuning.trainer import TuningConfig


def write_card(folder: Path, model: str, config: TuningConfig, data: str, reports: Sequence[Report]) -> None:
    """Write ``README.md`` beside the weights: what it is, how it was made, what it reached."""
    what = f"LoRA adapter, rank {config.lora_rank}, alpha {config.lora_alpha}" if config.lora_rank else "All weights"
    option = "--adapter" if config.lora_rank else "--model"
    lines = [
        f"# {model}, tuned for blocks",
        "",
        f"{what}. Made with `npc-engine tune`; use it with `npc-engine play WORLD {option} FOLDER`.",
        "",
        "## Recipe",
        "",
        f"- Base: {model}",
        f"- Data: {data}",
        f"- Every conversation in full and in block mode, loss on replies, KL(full ‖ blocks) × {config.kl_weight:g}, "
        f"attention to blocks that hold the answer × {config.retrieval_weight:g}",
        f"- {reports[-1].step:,} steps of {config.lines_per_batch * config.accumulation} conversations per process, "
        f"packed into rows of {config.row_tokens:,} tokens; AdamW, {config.learning_rate:g}, cosine, "
        f"precision {config.precision}, seed {config.seed}",
        "",
        "## Curves",
        "",
        "Loss per reply token, in nats.",
        "",
        "| step | full | blocks | KL | development: full | blocks | KL |",
        "|---|---|---|---|---|---|---|",
        *(_row(report) for report in _thinned(reports)),
        "",
        "## Limits",
        "",
        "It is judged by the loss above alone until `npc-engine bench quality` has been run on scenes of yours.",
        "",
    ]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")


def _row(report: Report) -> str:
    losses = (report.loss_full, report.loss_blocks, report.kl, report.dev_full, report.dev_blocks, report.dev_kl)
    cells = ("" if loss is None else f"{loss:.3f}" for loss in losses)
    return f"| {report.step} | {' | '.join(cells)} |"


def _thinned(reports: Sequence[Report], most: int = 12) -> Sequence[Report]:
    """At most about `most` of them, the last one always."""
    step = -(-len(reports) // most)
    return [report for i, report in enumerate(reports) if (len(reports) - 1 - i) % max(1, step) == 0]
