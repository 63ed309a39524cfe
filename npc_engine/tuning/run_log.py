"""The curves of a tuning run: a CSV file, and TensorBoard's where it is installed."""

from __future__ import annotations

import contextlib
import csv
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

from npc_engine.errors import TuningError

_FILE: Final = "metrics.csv"


@dataclass(frozen=True, slots=True)
class Report:
    """One line of ``metrics.csv``.

    Losses are per reply token in nats, means since the line before. The `dev` figures are of the development samples,
    None if there are none.
    """

    step: int
    loss_full: float
    loss_blocks: float
    kl: float
    learning_rate: float
    tokens_per_s: float
    dev_full: float | None = None
    dev_blocks: float | None = None
    dev_kl: float | None = None
    retrieval: float | None = None
    dev_retrieval: float | None = None


class RunLog:
    """Appends reports to ``OUTPUT/metrics.csv`` and ``OUTPUT/tensorboard``."""

    def __init__(self, output: Path) -> None:
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TuningError(f"--output {output}: can't be made ({error.strerror}); give another folder") from error
        self._path = output / _FILE
        self._writer: Any = None
        with contextlib.suppress(ImportError):
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(output / "tensorboard"))

    def forget_after(self, step: int) -> None:
        """Drop what an interrupted run wrote after the state that it is resumed from."""
        if not self._path.exists():
            return
        kept = [report for report in read_reports(self._path.parent) if report.step <= step]
        self._path.unlink()
        for report in kept:
            self._append(report)

    def write(self, report: Report) -> None:
        """Add one line; a resumed run goes on below."""
        self._append(report)
        if self._writer is not None:
            for name, value in asdict(report).items():
                if name != "step" and value is not None:
                    self._writer.add_scalar(name.replace("_", "/", 1), value, report.step)
            self._writer.flush()

    def _append(self, report: Report) -> None:
        is_new = not self._path.exists()
        with self._path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [field.name for field in fields(Report)])
            if is_new:
                writer.writeheader()
            writer.writerow({name: value for name, value in asdict(report).items() if value is not None})


def read_reports(output: Path) -> list[Report]:
    """All lines of a run's ``metrics.csv``, those of resumed runs too; empty if there is none."""
    path = output / _FILE
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [_parse(line) for line in csv.DictReader(file)]


def _parse(line: dict[str, str]) -> Report:
    values: dict[str, Any] = {name: float(value) for name, value in line.items() if value}
    return Report(**{**values, "step": int(line["step"])})
