"""What is run, and in which order: for every arm its trials on the tuning seeds, then its chosen settings on the reported ones."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence

from benchmarks.quality.arms import ARMS, Arm, trials
from benchmarks.quality.rows import SELECTIONS, TUNING_SEEDS, Cell, Row, chosen, finalists, of_cell
from benchmarks.quality.task import Task
from benchmarks.quality.training import Job

LONGEST = 20  # times the task's steps, at equal time

Measure = Callable[[Sequence[Job], bool], None]  # jobs, with a curve -> their rows are among the runs


def cells(task: Task, names: Iterable[str]) -> list[Cell]:
    """The arms of these names with the sources as they are, and mixed where that says something."""
    found = []
    for arm in (ARMS[name] for name in names):
        if task.has_sources or not arm.needs_sources:
            found.append(Cell(arm.name))
        if task.has_sources and arm.control:
            found.append(Cell(arm.name, mixed=True))
    return found


def run_cell(task: Task, cell: Cell, seeds: int, found: dict[Job, Row], measure: Measure) -> None:
    """Everything about one arm."""
    steps = steps_of(task, ARMS[cell.arm], found)
    settings = trials(task, ARMS[cell.arm])
    measure([Job(*cell, *setting, TUNING_SEEDS[0], steps) for setting in settings], False)
    measure([Job(*cell, *setting, seed, steps) for setting in finalists(found, cell) for seed in TUNING_SEEDS], False)
    picked = dict.fromkeys(chosen(found, cell, selection) for selection in SELECTIONS)
    measure([Job(*cell, *setting, seed, steps) for setting in picked for seed in range(seeds)], True)


def steps_of(task: Task, arm: Arm, found: dict[Job, Row]) -> int:
    """The task's steps, or as many as take as long as the dearest arm that has been measured.

    By seconds it is what was measured when the arm was begun: later runs of the arm keep to it.
    """
    if arm.longer is None:
        return task.steps
    begun = [job.steps for job in of_cell(found, Cell(arm.name))]
    if begun:
        return begun[0]
    one = of_cell(found, Cell("plain"))
    others = {name: rows for name in ARMS if ARMS[name].aligned and (rows := of_cell(found, Cell(name)))}
    if not one or not others:
        raise ValueError(
            f"{arm.name}: expected rows of plain and of an aligned arm before it; got none; run these first"
        )
    cost = median_of(arm.longer)
    return min(LONGEST * task.steps, math.ceil(task.steps * max(map(cost, others.values())) / cost(one)))


def median_of(figure: str) -> Callable[[dict[Job, Row]], float]:
    """The median over rows."""
    return lambda found: statistics.median(row[figure] for row in found.values() if not row.get("diverged"))
