"""`python -m benchmarks.quality`: runs the arms of a task, or prints the comparison of what has been run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import ROOT
from benchmarks.errors import CommandError
from benchmarks.provenance import date, provenance
from benchmarks.quality import comparison, protocol, rows
from benchmarks.quality.arms import ARMS
from benchmarks.quality.pool import Pool
from benchmarks.quality.task import Task
from benchmarks.quality.tasks import TASKS
from gradalign.cli import options

OUT = ROOT / "benchmarks" / "results" / "quality"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs or compares; the exit code is 2 for wrong arguments, 130 after Ctrl-C."""
    try:
        return command(parser().parse_args(argv))
    except CommandError as error:
        print(f"benchmarks.quality: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("benchmarks.quality: interrupted; the same command goes on", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m benchmarks.quality",
        description="Compares ways to fill .grad on a task, each with 12 trials for its settings, on paired seeds. Rows are "
        "written as they are measured: the same command goes on after an interruption.",
    )
    top.add_argument(
        "task", nargs="?", choices=sorted(TASKS), metavar="TASK", help=f"one of {', '.join(sorted(TASKS))}"
    )
    top.add_argument("--compare", metavar="TASK|all", help="print the comparison from the rows instead")
    top.add_argument("--plot", metavar="TASK", help="draw the figure of a task from its rows instead")
    top.add_argument("--seeds", type=options.count(2), metavar="N", help="reported seeds (default: the task's own)")
    top.add_argument(
        "--arms", nargs="+", choices=list(ARMS), metavar="ARM", help=f"of {', '.join(ARMS)} (default: all)"
    )
    top.add_argument(
        "--library",
        action="store_true",
        help="run the chosen settings on the reported seeds once more, one by one through the public interface",
    )
    top.add_argument("--jobs", type=options.count(1), default=2, metavar="N", help="processes (default: 2)")
    top.add_argument("--out", type=Path, default=OUT, metavar="DIR", help="folder of the rows")
    return top


def command(args: argparse.Namespace) -> int:
    if sum(value is not None for value in (args.task, args.compare, args.plot)) != 1:
        raise CommandError("expected a task, --compare or --plot, and one of them only")
    if args.plot:
        from benchmarks.quality import plot

        plot.draw(TASKS[args.plot], args.out)
        return 0
    if args.compare:
        names = measured(args.out) if args.compare == "all" else [args.compare]
        print("\n\n".join(comparison.text(TASKS[name], rows.read(rows.path(args.out, name))) for name in names))
        return 0
    task = TASKS[args.task]
    measure(task, args.arms or list(ARMS), args.seeds or task.seeds, args.jobs, args.out, args.library)
    return 0


def measured(folder: Path) -> list[str]:
    """The tasks that have rows, in the order of `TASKS`."""
    return [name for name in TASKS if rows.path(folder, name).exists()]


def measure(task: Task, arms: Sequence[str], seeds: int, jobs: int, folder: Path, library: bool = False) -> None:
    """Runs what has no row yet, arm by arm; or, with `library`, what has no row through the library."""
    torch.set_num_threads(jobs)
    task.problem(0, False)  # loads and keeps what all workers need
    torch.set_num_threads(1)
    file = rows.path(folder, task.name)
    rows.append(file, [{"kind": "machine", "date": date(), **provenance("cpu", 0)}])
    with Pool(task, file, jobs) as pool:
        for cell in protocol.cells(task, arms):
            before = pool.measured
            (protocol.check_by_library if library else protocol.run_cell)(task, cell, seeds, pool)
            print(f"{task.name}: {comparison.label(cell)}: {pool.measured - before} runs", flush=True)


if __name__ == "__main__":
    sys.exit(main())
