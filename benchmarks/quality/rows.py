"""The rows of a task: one file of JSON lines, one row a run, appended as they are measured."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import json_lines
from benchmarks.quality.arms import ARMS
from benchmarks.quality.task import TUNING_SEEDS, Task
from benchmarks.quality.training import Job

Row = dict[str, Any]
SELECTIONS = {  # which trial, by which figure: metric set of a row, metric
    "validation": ("final", "validation"),
    "stopped": ("stopped", "validation"),
    "source": ("final", "source_validation"),
    "start": ("final", "source_validation"),  # of plain training: its learning rate, and the value to start from
}


class Cell(NamedTuple):
    """An arm with its sources as they are, or mixed."""

    arm: str
    mixed: bool = False


def path(folder: Path, task: str) -> Path:
    """The file of a task."""
    return folder / f"{task}.jsonl"


def read(file: Path) -> list[Row]:
    """All complete rows; a line that an interruption cut short is measured again."""
    return json_lines.read(file)


def append(file: Path, found: Sequence[Row]) -> None:
    """Lines more, on the disk when this returns; a line that was cut short before them is left to itself."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab+") as opened:
        if opened.tell() > 0:
            opened.seek(-1, os.SEEK_END)
            if opened.read(1) != b"\n":
                opened.write(b"\n")
        opened.write("".join(f"{json.dumps(row, separators=(',', ':'))}\n" for row in found).encode())
        opened.flush()
        os.fsync(opened.fileno())


def job_of(row: Row) -> Job:
    """The job that a row is the result of."""
    return Job(*(row[name] for name in Job._fields))


def runs(rows: Iterable[Row], kind: str = "run") -> dict[Job, Row]:
    """The rows of that kind by job: "run", "library" for a second run through the public interface, or "timing"."""
    return {job_of(row): row for row in rows if row["kind"] == kind}


def trial(job: Job) -> tuple[float, float]:
    """The setting of a job."""
    return job.lr, job.value


def of_cell(found: dict[Job, Row], cell: Cell) -> dict[Job, Row]:
    """The runs of an arm."""
    arm, mixed = cell
    return {job: row for job, row in found.items() if job.arm == arm and job.mixed == mixed}


def by_cell(found: dict[Job, Row]) -> dict[Cell, dict[Job, Row]]:
    """The runs of every arm that has some."""
    cells: dict[Cell, dict[Job, Row]] = {}
    for job, row in found.items():
        cells.setdefault(Cell(job.arm, job.mixed), {})[job] = row
    return cells


def passes(found: dict[Job, Row], cell: Cell) -> float | None:
    """Of a run, relative to plain training; None without rows."""
    one, plain = (next((row["passes"] for row in of_cell(found, c).values()), None) for c in (cell, Cell("plain")))
    return one / plain if one and plain else None


def seconds(timed: dict[Job, Row], cell: Cell) -> float | None:
    """Of processor time, relative to plain training that ran in turns with it; None where that was not measured."""
    ratios = [row["seconds"] / row["plain_seconds"] for row in of_cell(timed, cell).values()]
    return statistics.median(ratios) if ratios else None


def scores(found: dict[Job, Row], cell: Cell, selection: str, seeds: Sequence[int]) -> dict[tuple[float, float], float]:
    """The mean over tuning seeds of every setting that has been tried on all of them, in the order of the trials."""
    stop, metric = SELECTIONS[selection]
    by_setting: dict[tuple[float, float], dict[int, float]] = {}
    for job, row in sorted(of_cell(found, cell).items()):
        by_setting.setdefault(trial(job), {})[job.seed] = row[stop][metric]
    return {
        setting: sum(values[seed] for seed in seeds) / len(seeds)
        for setting, values in by_setting.items()
        if all(seed in values for seed in seeds)
    }


def chosen(found: dict[Job, Row], cell: Cell, selection: str) -> tuple[float, float]:
    """The setting whose mean over the tuning seeds is best; of equal ones, that of the smaller lr, then of smaller value.

    By "start" an arm with a parameter of its own has nothing chosen for it: its value is the one to start from, and its lr the
    one chosen for plain training.

    Raises:
        ValueError: nothing to choose from.
    """
    if selection == "start" and ARMS[cell.arm].parameter:
        return chosen(found, Cell("plain"), "start")[0], ARMS[cell.arm].start
    means = scores(found, cell, selection, TUNING_SEEDS)
    return max(means, key=lambda setting: means[setting])


def reported(found: dict[Job, Row], task: Task, cell: Cell, selection: str) -> dict[int, Row]:
    """The rows of the chosen setting by seed, as far as they are measured."""
    setting = chosen(found, cell, selection)
    return {
        job.seed: row
        for job, row in sorted(of_cell(found, cell).items())
        if trial(job) == setting and job.seed not in TUNING_SEEDS
    }
