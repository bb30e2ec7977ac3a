"""The comparison of a task's arms, from its rows."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.quality.arms import ARMS
from benchmarks.quality.rows import (
    SELECTIONS,
    TUNING_SEEDS,
    Cell,
    Row,
    by_cell,
    chosen,
    passes,
    reported,
    runs,
    scores,
    seconds,
)
from benchmarks.quality.statistics import bootstrap, holm, sign_flip
from benchmarks.quality.task import METRICS, Task
from benchmarks.quality.training import Job
from benchmarks.tables import as_markdown

PLAIN = Cell("plain")
REFERENCES = {
    "equal steps": PLAIN,
    "equal passes": Cell("plain, equal passes"),
    "equal seconds": Cell("plain, equal seconds"),
}


@dataclass(frozen=True)
class Gain:
    """A mean of paired differences.

    Attributes:
        mean: over the seeds that both have.
        low: end of the 95% interval.
        high: its other end.
        p: of the sign-flip test, Holm-corrected over the arms of the column.
    """

    mean: float
    low: float
    high: float
    p: float

    @property
    def clear(self) -> bool:
        """Whether the interval excludes 0 and the corrected p is under 0.05."""
        return self.p < 0.05 and (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class Line:
    """An arm in the comparison.

    Attributes:
        cell: the arm, and whether sources were mixed.
        setting: (lr, value) that was chosen.
        mean: of the figure over seeds.
        seeds: how many.
        gains: over plain training by name of the budget; None for the reference itself or without rows.
        passes: of a run, relative to plain training.
        seconds: of processor time in the library, relative to plain training beside it; None where that was not measured.
    """

    cell: Cell
    setting: tuple[float, float]
    mean: float
    seeds: int
    gains: dict[str, Gain | None]
    passes: float
    seconds: float | None


def label(cell: Cell) -> str:
    """Of an arm in a table."""
    return f"{cell.arm}, sources mixed" if cell.mixed else cell.arm


def lines(task: Task, rows: Sequence[Row], selection: str, metric: str = "test") -> list[Line]:
    """All arms that have reported rows.

    Args:
        task: whose rows they are.
        rows: of its file.
        selection: a key of `SELECTIONS`: by which figure the setting is chosen and which stop is reported.
        metric: what is reported.
    """
    measured = runs(rows)
    seeds_of = _reported(task, by_cell(measured), selection)
    figures = _figures(seeds_of, selection, metric)
    timed = runs(rows, "timing")
    columns = {name: _gains(figures, reference) for name, reference in REFERENCES.items()}
    return [
        Line(
            cell,
            chosen(measured, cell, selection),
            statistics.fmean(values.values()),
            len(values),
            {name: column.get(cell) for name, column in columns.items()},
            passes(measured, cell) or float("nan"),
            1.0 if timed and cell == PLAIN else seconds(timed, cell),
        )
        for cell, values in figures.items()
    ]


def against(task: Task, rows: Sequence[Row], selection: str, reference: Cell) -> dict[Cell, Gain]:
    """Every other arm's gain over one of them, with intervals that are not corrected for their number."""
    figures = _figures(_reported(task, by_cell(runs(rows)), selection), selection, "test")
    return {
        cell: _gains({cell: values, reference: figures[reference]}, reference, others=[cell])[cell]
        for cell, values in figures.items()
        if cell != reference
    }


def _reported(task: Task, found: dict[Cell, dict[Job, Row]], selection: str) -> dict[Cell, dict[int, Row]]:
    """The reported rows of every arm that has some."""
    cells = [cell for name in ARMS for mixed in (False, True) if (cell := Cell(name, mixed)) in found]
    complete = [cell for cell in cells if scores(found[cell], cell, selection, TUNING_SEEDS)]
    if selection == "start" and PLAIN not in complete:
        return {}
    return {
        cell: by_seed for cell in complete if (by_seed := reported(_with_plain(found, cell), task, cell, selection))
    }


def _with_plain(found: dict[Cell, dict[Job, Row]], cell: Cell) -> dict[Job, Row]:
    """What a cell's settings are chosen from."""
    return found.get(PLAIN, {}) | found[cell]


def _figures(seeds_of: dict[Cell, dict[int, Row]], selection: str, metric: str) -> dict[Cell, dict[int, float]]:
    stop = SELECTIONS[selection][0]
    return {cell: {seed: row[stop][metric] for seed, row in by_seed.items()} for cell, by_seed in seeds_of.items()}


def _gains(
    figures: dict[Cell, dict[int, float]], reference: Cell, others: Sequence[Cell] | None = None
) -> dict[Cell, Gain]:
    """Arms against one, corrected over all of them; None: all but those of plain training."""
    base = figures.get(reference)
    if base is None:
        return {}
    others = [cell for cell in figures if cell not in REFERENCES.values()] if others is None else others
    differences = {cell: [v - base[s] for s, v in sorted(figures[cell].items()) if s in base] for cell in others}
    differences = {cell: found for cell, found in differences.items() if len(found) > 1}
    ps = holm([sign_flip(found) for found in differences.values()])
    return {
        cell: Gain(statistics.fmean(found), *bootstrap(found), p)
        for (cell, found), p in zip(differences.items(), ps, strict=True)
    }


def scale(rows: Sequence[Row]) -> float:
    """100 where all figures are fractions, else 1."""
    tests = [row["final"]["test"] for row in rows if row["kind"] == "run"]
    return 100.0 if all(0 <= value <= 1 for value in tests) else 1.0


def as_text(gain: Gain | None, factor: float) -> str:
    """Mean, interval, and a star where it is clear."""
    if gain is None:
        return ""
    mean, low, high = (number(value, factor, "+") for value in (gain.mean, gain.low, gain.high))
    return f"{mean} ({low} to {high}){'*' if gain.clear else ''}"


def setting_text(line: Line) -> str:
    """lr, and the arm's own parameter."""
    lr, value = line.setting
    return f"lr {lr:g}" + (f", {ARMS[line.cell.arm].parameter} {value:g}" if ARMS[line.cell.arm].parameter else "")


HEADER = (
    "arm",
    "chosen",
    "test",
    "over plain",
    "at equal passes",
    "at equal seconds",
    "stopped early",
    "over plain",
    "chosen on sources",
    "over plain",
    "untuned",
    "over plain",
    "passes",
    "seconds",
)


def table(task: Task, rows: Sequence[Row]) -> str:
    """All arms in Markdown: the settings chosen on validation data, then the other ways to choose."""
    factor = scale(rows)
    found = lines(task, rows, "validation")
    others = [
        {line.cell: line for line in lines(task, rows, selection)} for selection in ("stopped", "source", "start")
    ]
    seeds = most_seeds(found)
    body = [
        [
            label(line.cell),
            setting_text(line),
            _mean(line, factor, seeds),
            *(as_text(line.gains[name], factor) for name in REFERENCES),
            *(part for by_cell in others for part in _mean_and_gain(by_cell.get(line.cell), factor, seeds)),
            f"{line.passes:.2g}",
            "" if line.seconds is None else f"{line.seconds:.2g}",
        ]
        for line in found
    ]
    return as_markdown(HEADER, body, num_text=2)


def most_seeds(found: Sequence[Line]) -> int:
    """The number of seeds of the arm that has most."""
    return max((line.seeds for line in found), default=0)


def _mean(line: Line, factor: float, seeds: int) -> str:
    """The mean, with the number of seeds where it is another one than that of the table."""
    return number(line.mean, factor) + ("" if line.seeds == seeds else f" (n={line.seeds})")


def _mean_and_gain(line: Line | None, factor: float, seeds: int) -> tuple[str, str]:
    """Both empty where an arm has not been run that way."""
    if line is None:
        return "", ""
    return _mean(line, factor, seeds), as_text(line.gains["equal steps"], factor)


def number(value: float, factor: float, sign: str = "") -> str:
    """In points with one digit, else with three; with an exponent where a run diverged and stayed finite."""
    scaled = factor * value
    return f"{scaled:{sign}.1e}" if abs(scaled) >= 1e4 else f"{scaled:{sign}.{1 if factor == 100 else 3}f}"


def extra_table(task: Task, rows: Sequence[Row], metric: str) -> str:
    """Another metric of the settings chosen on validation data, at the last step."""
    factor = scale(rows)
    found = lines(task, rows, "validation", metric)
    seeds = most_seeds(found)
    body = [[label(line.cell), *_mean_and_gain(line, factor, seeds)] for line in found]
    return as_markdown(("arm", metric.replace("_", " "), "over plain"), body)


def extra_metrics(rows: Sequence[Row]) -> list[str]:
    """What a task reports beside the metrics that all have."""
    found: dict[str, float] = next((row["final"] for row in rows if row["kind"] == "run"), {})
    return [name for name in found if name not in METRICS]


def text(task: Task, rows: Sequence[Row]) -> str:
    """Everything about a task."""
    found = lines(task, rows, "validation")
    seeds = most_seeds(found)
    fewer = ", fewer where n is given" if any(line.seeds < seeds for line in found) else ""
    tables = [table(task, rows), *(extra_table(task, rows, name) for name in extra_metrics(rows))]
    return "\n\n".join([f"{task.name}: {task.title}; {seeds} seeds{fewer}", *tables, library_text(rows)])


def library_text(rows: Sequence[Row]) -> str:
    """How far the library's runs are from the ones reported."""
    found, library = runs(rows), runs(rows, "library")
    both = [abs(row["final"]["test"] - found[job]["final"]["test"]) for job, row in library.items() if job in found]
    if not both:
        return "every run by the library"
    return f"{len(both)} of the runs again through the library: the test differs by {max(both):.4f} at most"
