"""Writes the tables of docs/evidence.md and docs/evidence-arms.md from the rows in benchmarks/results/quality.

`python -m benchmarks.quality.page [--check]`. With --check nothing is written; the exit code is 1 where a page differs.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
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
        if gain is not None and other.passes <= line.passes and gain.high >= 0:
            names.append(f"{other.cell.arm} {comparison.number(gain.mean, factor, '+')}")
    return ", ".join(names) or "none of those tried"


def tables(found: Results) -> str:
    """All arms of every task."""
    sections = []
    for task, read in found.items():
        title, *rest = comparison.text(task, read).split("\n\n")
        sections.append("\n\n".join([f"## {task.name}", title.partition(": ")[2] + ".", *rest]))
    return "\n\n".join(sections)


PAGES: dict[str, Callable[[Results], str]] = {"evidence.md": summary, "evidence-arms.md": tables}
BEGIN, END = "<!-- rows:start -->", "<!-- rows:end -->"


def written(name: str, page: str, found: Results) -> str:
    """The page of this name with its block from these results.

    Raises:
        ValueError: the block is not there exactly once.
    """
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise ValueError(f"{name}: expected {BEGIN} and {END}, once each; put them where the block belongs")
    block = f"{BEGIN}\n{PAGES[name](found)}\n{END}"
    return re.sub(f"{BEGIN}.*?{END}", lambda _: block, page, flags=re.DOTALL)


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
