"""Writes the tables of docs/evidence.md and docs/evidence-arms.md from the rows in benchmarks/results/quality.

`python -m benchmarks.quality.page [--check]`. With --check nothing is written; the exit code is 1 where a page differs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import ROOT
from benchmarks.quality import comparison, rows
from benchmarks.quality.arms import ARMS
from benchmarks.quality.comparison import Line
from benchmarks.quality.rows import TUNING_SEEDS, Cell, Row
from benchmarks.quality.task import Task
from benchmarks.quality.tasks import TASKS
from benchmarks.tables import as_markdown

DOCS = ROOT / "docs"
RESULTS = ROOT / "benchmarks" / "results" / "quality"
OURS = ("cosine", "variance", "dot", "norm", "cosine, split", "cosine, first layer", "variance, first layer")

Results = Mapping[Task, Sequence[Row]]


def results(folder: Path) -> dict[Task, list[Row]]:
    """The rows of every task that has plain training and an objective in its comparison."""
    found = {task: rows.read(rows.path(folder, name)) for name, task in TASKS.items()}
    return {task: read for task, read in found.items() if _usable(comparison.lines(task, read, "validation"))}


def _usable(lines: Sequence[Line]) -> bool:
    names = {line.cell.arm for line in lines}
    return "plain" in names and bool(names & set(OURS))


def best(task: Task, read: Sequence[Row]) -> Line:
    """The objective whose chosen setting is best on the validation data of the tuning seeds: the test has no say.

    Of equal ones the one of the fewest passes, then the first of `OURS`.
    """
    found = rows.runs(read)
    candidates = [line for line in comparison.lines(task, read, "validation") if _is_ours(line.cell)]

    def score(line: Line) -> tuple[float, float, int]:
        reached = max(rows.scores(found, line.cell, "validation", TUNING_SEEDS).values())
        return round(reached, 6), -line.passes, -OURS.index(line.cell.arm)

    return max(candidates, key=score)


def _is_ours(cell: Cell) -> bool:
    return cell.arm in OURS and not cell.mixed


def summary(found: Results) -> str:
    """One line a task."""
    header = (
        "situation",
        "use",
        "start at",
        "over plain",
        "at equal passes",
        "untuned",
        "passes",
        "as well for less",
    )
    body = [summary_line(task, read) for task, read in found.items()]
    return as_markdown(header, body, num_text=len(header))


def summary_line(task: Task, read: Sequence[Row]) -> list[str]:
    """What to use there and what it gains."""
    line, factor = best(task, read), comparison.scale(read)
    arm = ARMS[line.cell.arm]
    gains = [comparison.as_text(line.gains[name], factor) for name in ("equal steps", "equal passes")]
    untuned = {other.cell: other.gains["equal steps"] for other in comparison.lines(task, read, "start")}
    gains.append(comparison.as_text(untuned.get(line.cell), factor))
    start = f"{arm.parameter} {line.setting[1]:g}, lr {line.setting[0]:g}"
    use = f"`{arm.name}`" if helps(line) else f"plain training; the best objective was `{arm.name}`"
    if line.seeds < comparison.most_seeds(comparison.lines(task, read, "validation")):
        use += f" (n={line.seeds})"
    return [f"{task.title} (`{task.name}`)", use, start, *gains, f"{line.passes:.2g}", cheaper(task, read, line)]


def helps(line: Line) -> bool:
    """Whether it gains clearly, at equal passes where plain training has been run so long."""
    gain = line.gains["equal passes"] or line.gains["equal steps"]
    return gain is not None and gain.clear and gain.mean > 0


def cheaper(task: Task, read: Sequence[Row], line: Line) -> str:
    """Arms of no more passes that are not clearly worse than this one, with how much better they are."""
    factor = comparison.scale(read)
    lines = [
        other
        for other in comparison.lines(task, read, "validation")
        if not _is_ours(other.cell) and not other.cell.mixed
    ]
    against = comparison.against(task, read, "validation", line.cell)
    names = []
    for other in lines:
        gain = against.get(other.cell)
        if gain is not None and other.passes <= line.passes and not (gain.clear and gain.mean < 0):
            names.append(f"{other.cell.arm} {comparison.number(gain.mean, factor, '+')}")
    return ", ".join(names) or "none of those tried"


def tables(found: Results) -> str:
    """All arms of every task."""
    sections = []
    for task, read in found.items():
        title, *rest = comparison.text(task, read).split("\n\n")
        sections.append("\n\n".join([f"## {task.name}", title.partition(": ")[2] + ".", *rest]))
    return "\n\n".join(sections)


@dataclass(frozen=True)
class Group:
    """Tasks and arms that stand in one table of gains.

    Attributes:
        tasks: their names.
        arms: the columns.
    """

    tasks: tuple[str, ...]
    arms: tuple[str, ...]

    def __call__(self, found: Results) -> str:
        """Gains of each arm over plain training in each task, for each way to choose; a star where they are clear."""
        tasks = {task: read for task, read in found.items() if task.name in self.tasks}
        body = []
        for way, (selection, mixed) in WAYS.items():
            body += [
                (f"`{task.name}`", way, *self._gains(task, read, selection, mixed)) for task, read in tasks.items()
            ]
        return as_markdown(("task", "chosen", "plain", *self.arms), [row for row in body if any(row[3:])], num_text=2)

    def _gains(self, task: Task, read: Sequence[Row], selection: str, mixed: bool) -> list[str]:
        factor = comparison.scale(read)
        by_cell = {line.cell: line for line in comparison.lines(task, read, selection)}
        plain = by_cell.get(comparison.PLAIN)
        gains = [_short(by_cell.get(Cell(arm, mixed)), plain, factor) for arm in self.arms]
        return ["" if plain is None else comparison.number(plain.mean, factor), *gains]


def _short(line: Line | None, plain: Line | None, factor: float) -> str:
    """The mean gain, with a star where it is clear; of longer plain training the difference of the means."""
    if line is None or plain is None:
        return ""
    gain = line.gains["equal steps"]
    if gain is None:
        return comparison.number(line.mean - plain.mean, factor, "+")
    return comparison.number(gain.mean, factor, "+") + ("*" if gain.clear else "")


# How settings are chosen, and whether sources are mixed.
WAYS = {
    "tuned": ("validation", False),
    "tuned, stopped early": ("stopped", False),
    "untuned": ("start", False),
    "tuned, sources mixed": ("validation", True),
}
GENERATED = ("shortcut-2", "shortcut-2-mini", "shortcut-3", "shortcut-4")
HIDDEN = ("shortcut-2-mlp", "reviews-2x99-mlp")
TEXT = tuple(name for name in TASKS if name.startswith("reviews-") and not name.endswith(("-mlp", "-bert")))
SPRITES = tuple(name for name in TASKS if name.startswith("sprites-"))
OTHERS = tuple(name for name in TASKS if name not in (*GENERATED, *HIDDEN, *TEXT, *SPRITES))
LESS = ("Reptile", "FOMAML", "Fishr", "IRMv1", "SAM", "weight decay", "plain, equal passes")
FIRST_LAYERS = ("variance", "cosine", "variance, first layer", "cosine, first layer")
Block = Callable[[Results], str]
PAGES: dict[str, dict[str, Block]] = {
    "evidence.md": {
        "rows": summary,
        "generated": Group(GENERATED, ("variance", "cosine", "cosine, split", "dot", *LESS)),
        "text": Group(TEXT, ("variance", "cosine", "dot", *LESS)),
        "hidden": Group(HIDDEN, (*FIRST_LAYERS, "dot", "Reptile", "Reptile, first layer", "FOMAML", "Fishr")),
        "sprites": Group(SPRITES, ("variance", "cosine", "dot", *LESS)),
        "others": Group(OTHERS, ("variance", "cosine", "dot", "norm", *LESS)),
    },
    "evidence-arms.md": {"rows": tables},
}


def written(name: str, page: str, found: Results) -> str:
    """The page of this name with its blocks from these results.

    Raises:
        ValueError: a block is not there exactly once.
    """
    for block, make in PAGES[name].items():
        begin, end = f"<!-- {block}:start -->", f"<!-- {block}:end -->"
        if page.count(begin) != 1 or page.count(end) != 1:
            raise ValueError(f"{name}: expected {begin} and {end}, once each; put them where the block belongs")
        before, rest = page.split(begin)
        page = f"{before}{begin}\n{make(found)}\n{end}{rest.split(end)[1]}"
    return page


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.page",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where a page differs")
    check = parser.parse_args(argv).check
    found = results(RESULTS)
    before = {name: (DOCS / name).read_text() for name in PAGES}
    after = {name: written(name, text, found) for name, text in before.items()}
    if not check:
        for name, text in after.items():
            (DOCS / name).write_text(text)
    return int(check and after != before)


if __name__ == "__main__":
    raise SystemExit(main())
