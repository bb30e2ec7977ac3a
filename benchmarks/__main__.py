"""`python -m benchmarks`: time and memory of whole optimizer steps, gradalign's and its alternatives'."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.errors import CommandError
from gradalign.cli import options

SUITES = ("quick", "host", "minilm", "cpu", "gpu")
OUT = Path("bench-out")


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, or reads what was measured.

    Args:
        argv: the arguments; None takes those of the process.

    Returns:
        The exit code: 0; 1 where a comparison finds a regression; 2 for wrong arguments or something missing; 130 after
        Ctrl-C.
    """
    try:
        return run(parser().parse_args(argv))
    except CommandError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("benchmarks: interrupted; the same command goes on", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """All options; those that depend on what is asked for are None or False until `run` fills them in."""
    top = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measures seconds per step as a ratio to plain AdamW, peak memory, passes and bytes, for gradalign and its "
        "alternatives on the same workload. Rows are written as they are measured: the same command goes on after an "
        "interruption.",
    )
    what = top.add_mutually_exclusive_group()
    what.add_argument("--suite", choices=SUITES, help="what to measure (default: quick)")
    what.add_argument("--quick", action="store_true", help="the suite of under 2 minutes")
    what.add_argument(
        "--compare", nargs=2, type=Path, metavar=("A.json", "B.json"), help="B against A: what became slower or larger"
    )
    what.add_argument(
        "--report", type=Path, metavar="A.json", help="table and figures of a result, nothing is measured"
    )
    top.add_argument("--out", type=Path, metavar="DIR", help=f"where results are written (default: {OUT})")
    _add_measuring(top)
    top.add_argument("--no-figures", action="store_true", help="do without matplotlib")
    return top


def _add_measuring(top: argparse.ArgumentParser) -> None:
    """The options of a suite."""
    top.add_argument("--only", metavar="TEXT", help="measure only rows with TEXT in their workload or method")
    rows = top.add_mutually_exclusive_group()
    rows.add_argument("--fresh", action="store_true", help="forget the rows that are there instead of going on")
    rows.add_argument("--retry", action="store_true", help="measure again what failed")
    top.add_argument(
        "--minutes", type=options.positive, help="begin nothing after this time (default: the suite's own bound)"
    )
    top.add_argument("--device", default=None, help="cpu or cuda (default: cuda for the suite gpu, else cpu)")
    top.add_argument("--seed", type=options.count(0), help="of weights, data and dropout (default: 0)")


def run(args: argparse.Namespace) -> int:
    """Refuses options that would do nothing, and does the rest."""
    from benchmarks.steps import commands  # loads torch and the kernels, which --help does without

    reading = "--compare" if args.compare else "--report" if args.report else None
    options.fill_defaults(
        args, "a suite", reading, only=None, fresh=False, retry=False, minutes=None, device=None, seed=0
    )
    comparing = reading if args.compare else None
    options.fill_defaults(args, "a suite or --report", comparing, out=OUT, no_figures=False)
    if args.compare:
        return commands.compare(*args.compare)
    if args.report:
        return commands.report(args.report, args.out, not args.no_figures)
    return commands.measure(args)


if __name__ == "__main__":
    sys.exit(main())
