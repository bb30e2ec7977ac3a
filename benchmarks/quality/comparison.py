"""The comparison of a task's arms, from its rows."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.quality.arms import ARMS
from benchmarks.quality.rows import SELECTIONS, Cell, Row, chosen, reported, runs
from benchmarks.quality.statistics import bootstrap, holm, sign_flip
from benchmarks.quality.task import Task
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
        seconds: of processor time in the median run, relative to plain training.
    """

    cell: Cell
    setting: tuple[float, float]
    mean: float
    seeds: int
    gains: dict[str, Gain | None]
    passes: float
    seconds: float


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
    found = runs(rows)
    stop = SELECTIONS[selection][0]
    cells = [Cell(name, mixed) for name in ARMS for mixed in (False, True)]
    seeds_of = {cell: reported(found, task, cell, selection) for cell in cells if _complete(found, cell)}
    seeds_of = {cell: by_seed for cell, by_seed in seeds_of.items() if by_seed}
    figures = {cell: {seed: row[stop][metric] for seed, row in by_seed.items()} for cell, by_seed in seeds_of.items()}
    columns = {name: _gains(figures, reference) for name, reference in REFERENCES.items()}
    relative = {name: _relative(seeds_of, name) for name in ("passes", "seconds")}
    return [
        Line(
            cell,
            chosen(found, cell, selection),
            statistics.fmean(values.values()),
            len(values),
            {name: column.get(cell) for name, column in columns.items()},
            relative["passes"](cell),
            relative["seconds"](cell),
        )
        for cell, values in figures.items()
    ]


def _complete(found: dict[Job, Row], cell: Cell) -> bool:
    """Whether a setting has been tried on all tuning seeds."""
    from benchmarks.quality.rows import TUNING_SEEDS, scores

    return bool(scores(found, cell, "validation", TUNING_SEEDS))


def _gains(figures: dict[Cell, dict[int, float]], reference: Cell) -> dict[Cell, Gain]:
    """Every arm against one, corrected over all arms but the ones of plain training."""
    base = figures.get(reference)
    if base is None:
        return {}
    others = [cell for cell in figures if cell not in REFERENCES.values()]
    differences = {cell: [v - base[s] for s, v in sorted(figures[cell].items()) if s in base] for cell in others}
    differences = {cell: found for cell, found in differences.items() if len(found) > 1}
    ps = holm([sign_flip(found) for found in differences.values()])
    return {
        cell: Gain(statistics.fmean(found), *bootstrap(found), p)
        for (cell, found), p in zip(differences.items(), ps, strict=True)
    }


def _relative(seeds_of: dict[Cell, dict[int, Row]], name: str) -> Callable[[Cell], float]:
    def median(cell: Cell) -> float:
        return statistics.median(row[name] for row in seeds_of[cell].values())

    return lambda cell: median(cell) / median(PLAIN) if PLAIN in seeds_of else float("nan")


def scale(rows: Sequence[Row]) -> float:
    """100 where all figures are fractions, else 1."""
    tests = [row["final"]["test"] for row in rows if row["kind"] == "run"]
    return 100.0 if all(0 <= value <= 1 for value in tests) else 1.0


def as_text(gain: Gain | None, factor: float) -> str:
    """Mean, interval, and a star where it is clear."""
    if gain is None:
        return ""
    mean, low, high = (factor * value for value in (gain.mean, gain.low, gain.high))
    digits = 1 if factor == 100 else 3
    return f"{mean:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f}){'*' if gain.clear else ''}"


def setting_text(line: Line) -> str:
    """lr, and the arm's own parameter."""
    lr, value = line.setting
    return f"lr {lr:g}" + (f", {ARMS[line.cell.arm].parameter} {value:g}" if ARMS[line.cell.arm].parameter else "")


def table(task: Task, rows: Sequence[Row], selection: str, metric: str = "test") -> str:
    """All arms in Markdown."""
    factor = scale(rows)
    digits = 1 if factor == 100 else 3
    body = [
        [
            label(line.cell),
            setting_text(line),
            f"{factor * line.mean:.{digits}f}",
            *(as_text(line.gains[name], factor) for name in REFERENCES),
            f"{line.passes:.2g}",
            f"{line.seconds:.2g}",
        ]
        for line in lines(task, rows, selection, metric)
    ]
    header = ("arm", "chosen", "test", "over plain", "at equal passes", "at equal seconds", "passes", "seconds")
    return as_markdown(header, body, num_text=2)


TITLES = {
    "validation": "chosen on validation data of the test's distribution, at the last step",
    "stopped": "chosen on validation data of the test's distribution, stopped where that was best",
    "source": "chosen on held-out data of the training sources, at the last step: nothing of the test's distribution was seen",
}


def text(task: Task, rows: Sequence[Row]) -> str:
    """Everything about a task: one table for each way to choose."""
    found = [f"{task.name}: {task.title}"]
    found += [f"{title}\n\n{table(task, rows, selection)}" for selection, title in TITLES.items()]
    if any("clean_test" in row["final"] for row in rows if row["kind"] == "run"):
        found.append(
            f"the same as the first, tested without planted sentences\n\n{table(task, rows, 'validation', 'clean_test')}"
        )
    return "\n\n".join(found)
