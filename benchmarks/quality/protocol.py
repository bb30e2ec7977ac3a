"""What is run, in which order: for every arm all trials on the tuning seeds, then its chosen settings on the reported ones."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable

from benchmarks.quality.arms import ARMS, Arm, trials
from benchmarks.quality.pool import Pool
from benchmarks.quality.rows import SELECTIONS, Cell, Row, chosen, of_cell
from benchmarks.quality.task import TUNING_SEEDS, Task
from benchmarks.quality.training import Job

LONGEST = 10  # times the task's steps, at equal time


def cells(task: Task, names: Iterable[str]) -> list[Cell]:
    """The arms of these names with the sources as they are, and mixed where that says something."""
    found = []
    for arm in (ARMS[name] for name in names):
        if task.has_sources or not arm.needs_sources:
            found.append(Cell(arm.name))
        if task.has_sources and arm.control:
            found.append(Cell(arm.name, mixed=True))
    return found


def run_cell(task: Task, cell: Cell, seeds: int, pool: Pool) -> None:
    """Everything about one arm, and one of its runs through the library, which tells its seconds.

    Raises:
        ValueError: plain training, which other arms take a learning rate from, has not been run.
    """
    if cell.arm != "plain" and not of_cell(pool.found, Cell("plain")):
        raise ValueError(f"{cell.arm}: expected rows of plain before it; got none; run it first")
    steps = steps_of(task, ARMS[cell.arm], pool.found, pool.library)
    jobs = [Job(*cell, *setting, seed, steps) for seed in TUNING_SEEDS for setting in trials(task, ARMS[cell.arm])]
    pool.measure(jobs, False)
    picked = dict.fromkeys(chosen(pool.found, cell, selection) for selection in SELECTIONS)
    pool.measure([Job(*cell, *setting, seed, steps) for seed in range(seeds) for setting in picked], True)
    if task.replicas and not cell.mixed and ARMS[cell.arm].longer is None:
        pool.measure_by_library([Job(*cell, *next(iter(picked)), 0, steps)])


def check_by_library(task: Task, cell: Cell, seeds: int, pool: Pool) -> None:
    """The reported seeds of the setting chosen on validation data once more, through the library."""
    steps = steps_of(task, ARMS[cell.arm], pool.found, pool.library)
    pool.measure_by_library([Job(*cell, *chosen(pool.found, cell, "validation"), s, steps) for s in range(seeds)])


def steps_of(task: Task, arm: Arm, found: dict[Job, Row], library: dict[Job, Row]) -> int:
    """The task's steps, or as many as take as long as the most expensive arm that has been measured.

    By seconds it is what was measured when the arm was begun: later runs of the arm keep to it.
    """
    if arm.longer is None:
        return task.steps
    begun = [job.steps for job in of_cell(found, Cell(arm.name))]
    if begun:
        return begun[0]
    measured = library if arm.longer == "seconds" and task.replicas else found
    costs = {name: cost(of_cell(measured, Cell(name)), arm.longer) for name in ARMS if _counts(ARMS[name])}
    largest = max((c for name, c in costs.items() if name != "plain" and c is not None), default=None)
    if costs["plain"] is None or largest is None:
        raise ValueError(
            f"{arm.name}: expected rows of plain and of an aligned arm before it; got none; run these first"
        )
    return max(task.steps, min(LONGEST * task.steps, math.ceil(task.steps * largest / costs["plain"])))


def _counts(arm: Arm) -> bool:
    """Whether it is plain training or what that is given as much time as."""
    return arm.name == "plain" or arm.aligned


def cost(found: dict[Job, Row], figure: str) -> float | None:
    """The median of a figure; None without rows."""
    return statistics.median(row[figure] for row in found.values()) if found else None
