"""The figure of a task: the test over steps, and every arm's gain over plain training with its interval."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.quality import comparison, rows
from benchmarks.quality.rows import Row
from benchmarks.quality.task import Task

CURVES = ("plain", "SAM", "Reptile", "dot", "variance", "cosine")


def draw(task: Task, folder: Path) -> Path:
    """Writes TASK.png beside the rows."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    read = rows.read(rows.path(folder, task.name))
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    _curves(left, task, read)
    _gains(right, task, read)
    figure.suptitle(task.title)
    target = folder / f"{task.name}.png"
    figure.savefig(target, dpi=110)
    plt.close(figure)
    return target


def points(task: Task, read: Sequence[Row], arm: str) -> list[tuple[int, float]]:
    """(step, mean over the seeds of the test) of an arm's chosen setting."""
    by_seed = rows.reported(rows.runs(read), task, rows.Cell(arm), "validation")
    steps = zip(*(row["curve"] for row in by_seed.values()), strict=True)
    return [(column[0][0], statistics.fmean(point[-1] for point in column)) for column in steps]


def _curves(axes: Any, task: Task, read: Sequence[Row]) -> None:
    factor = comparison.scale(read)
    there = {line.cell.arm for line in comparison.lines(task, read, "validation") if not line.cell.mixed}
    for arm in CURVES:
        if arm in there:
            found = points(task, read, arm)
            axes.plot([step for step, _ in found], [factor * value for _, value in found], marker=".", label=arm)
    axes.set_xlabel("step")
    axes.set_ylabel("test, mean over seeds")
    axes.legend()


def _gains(axes: Any, task: Task, read: Sequence[Row]) -> None:
    factor = comparison.scale(read)
    with_gain = [(line, line.gains["equal steps"]) for line in comparison.lines(task, read, "validation")]
    drawn = [(line, gain) for line, gain in with_gain if gain is not None][::-1]
    for place, (line, gain) in enumerate(drawn):
        colour = "tab:gray" if line.cell.mixed else "tab:blue"
        axes.plot([factor * gain.low, factor * gain.high], [place, place], color=colour)
        axes.plot([factor * gain.mean], [place], "o", color=colour)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(drawn)), [comparison.label(line.cell) for line, _ in drawn])
    axes.set_xlabel("over plain training (95% interval)")
