"""The demo's progress bar."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class ProgressBar:
    """Shows how many steps are done, how many are left, and the time they take.

    Args:
        console: where it is drawn.
        steps: how many are known to be needed; `add_steps` adds more.
        unit: what is counted.
    """

    def __init__(self, console: Console, steps: int, unit: str = "steps") -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
        self._progress = Progress(
            *columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=console
        )
        self._task = self._progress.add_task("", total=steps)
        self._total = steps

    def __enter__(self) -> ProgressBar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def describe(self, text: str) -> None:
        """Sets the text at the left of the bar."""
        self._progress.update(self._task, description=text)

    def add_steps(self, steps: int) -> None:
        """Adds steps to the total."""
        self._total += steps
        self._progress.update(self._task, total=self._total)

    def advance(self) -> None:
        """One step is done."""
        self._progress.advance(self._task)

    def reach(self, steps: int) -> None:
        """So many are done in all."""
        self._progress.update(self._task, completed=steps)
