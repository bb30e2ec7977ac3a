"""What is run, in which order: for every arm all trials on the tuning seeds, then its chosen settings on the reported ones."""

from __future__ import annotations

import math
from collections.abc import Iterable

from benchmarks.quality.arms import ARMS, Arm, trials
from benchmarks.quality.pool import Pool
from benchmarks.quality.rows import SELECTIONS, Cell, Row, chosen, of_cell, passes, seconds
from benchmarks.quality.task import TUNING_SEEDS, Task
from benchmarks.quality.training import Job

LONGEST = 10  # times the task's steps, at equal time
ROUNDS = 3  # in which an arm and plain training are timed


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
    """Everything about one arm, one of its runs through the library, and what it takes beside plain training.

    Raises:
        ValueError: plain training, which other arms take a learning rate from, has not been run.
    """
    if cell.arm != "plain" and not of_cell(pool.found, Cell("plain")):
        raise ValueError(f"{cell.arm}: expected rows of plain before it; got none; run it first")
    steps = steps_of(task, ARMS[cell.arm], pool.found, pool.timed)
    jobs = [Job(*cell, *setting, seed, steps) for seed in TUNING_SEEDS for setting in trials(task, ARMS[cell.arm])]
    pool.measure(jobs, False)
    picked = dict.fromkeys(chosen(pool.found, cell, selection) for selection in SELECTIONS)
    pool.measure([Job(*cell, *setting, seed, steps) for seed in range(seeds) for setting in picked], True)
    if task.replicas and not cell.mixed and ARMS[cell.arm].longer is None:
        pool.measure_by_library([Job(*cell, *next(iter(picked)), 0, steps)])
    if not cell.mixed and ARMS[cell.arm].longer is None and cell.arm != "plain":
        time_cell(task, cell, pool)


def time_cell(task: Task, cell: Cell, pool: Pool) -> None:
    """How long the setting chosen on validation data takes, in turns with plain training: other machines have other seconds."""
    steps, rounds = (
        (task.steps, ROUNDS) if task.replicas else (math.ceil(task.steps / 2), ROUNDS - 1)
    )  # these take long
    settings = [(c, chosen(pool.found, c, "validation")) for c in (cell, Cell("plain"))]
    pool.time([tuple(Job(*c, *setting, seed, steps) for c, setting in settings) for seed in range(rounds)])


def check_by_library(task: Task, cell: Cell, seeds: int, pool: Pool) -> None:
    """The reported seeds of the setting chosen on validation data once more, through the library."""
    steps = steps_of(task, ARMS[cell.arm], pool.found, pool.timed)
    pool.measure_by_library([Job(*cell, *chosen(pool.found, cell, "validation"), s, steps) for s in range(seeds)])


def steps_of(task: Task, arm: Arm, found: dict[Job, Row], timed: dict[Job, Row]) -> int:
    """The task's steps, or as many as take as long as the most expensive arm that has been measured.

    By seconds it is what was measured when the arm was begun: later runs of the arm keep to it.
    """
    if arm.longer is None:
        return task.steps
    begun = [job.steps for job in of_cell(found, Cell(arm.name))]
    if begun:
        return begun[0]
    cells = [cell for name in ARMS if ARMS[name].aligned and of_cell(found, cell := Cell(name))]
    found_ratios = {c: seconds(timed, c) if arm.longer == "seconds" else passes(found, c) for c in cells}
    ratios = [ratio for ratio in found_ratios.values() if ratio is not None]
    if not ratios or len(ratios) < len(cells):
        lacking = ", ".join(c.arm for c, ratio in found_ratios.items() if ratio is None) or "none of an aligned arm"
        raise ValueError(
            f"{arm.name}: expected rows of plain and of an aligned arm before it, and timings of all such arms; lacking: "
            f"{lacking}; run these first"
        )
    return max(task.steps, min(LONGEST * task.steps, math.ceil(task.steps * max(ratios))))
