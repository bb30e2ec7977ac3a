"""The demo's progress bar."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Bar:
    """A `demo_train.Watcher` that shows the steps done and to come, and the time they take.

    Args:
        console: where it is drawn.
        steps: that are certain to come.
    """

    def __init__(self, console: Console, steps: int) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"))
        self._progress = Progress(
            *columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=console
        )
        self._task = self._progress.add_task("", total=steps)
        self._total = steps

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def name(self, text: str) -> None:
        """What is being done, left of the bar."""
        self._progress.update(self._task, description=text)

    def expect(self, steps: int) -> None:
        """So many further steps are to come."""
        self._total += steps
        self._progress.update(self._task, total=self._total)

    def advance(self) -> None:
        """A step is done."""
        self._progress.advance(self._task)
