"""How far fetching and loading a model has come, on standard error."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.progress import Progress as Bar
from rich.text import Text

from npc_engine.cli.output import human_bytes

if TYPE_CHECKING:
    from npc_engine.runtime import Progress

_LEAST_BYTES = 1 << 16  # no model has so many layers, no download so few bytes


class LoadingBar:
    """A progress bar, or one line per stage where nobody watches::

        with LoadingBar(console(stderr=True)) as bar:
            loaded = load(config, bar.show)

    `show` may be called from any thread. The bar leaves no trace; `stages` are those that were shown.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Bar(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            _Amount(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("starting", total=None)
        self.stages: list[str] = []

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def show(self, progress: Progress) -> None:
        """Show where it is."""
        stage, done, total = progress
        if stage not in self.stages:
            self.stages.append(stage)
            if not self._console.is_terminal:
                self._console.print(stage)
        self._bar.update(self._task, description=stage, completed=done, total=total or None)


class _Amount(ProgressColumn):
    """``12.3 MiB of 88.4 MiB`` or ``12 of 30 layers``."""

    def render(self, task: Task) -> Text:
        if not task.total:
            return Text("")
        if task.total >= _LEAST_BYTES:
            return Text(f"{human_bytes(int(task.completed))} of {human_bytes(int(task.total))}")
        return Text(f"{task.completed:.0f} of {task.total:.0f} layers")
