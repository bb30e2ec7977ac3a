"""`gradalign bench`: every method does the same work, and what that costs is written down.

The parts, one file or two each:

    works, models, text     what is done: a model, k micro-batches, their loss
    methods, peers          who does it: one small class each, all with the same `step(micro_batches)`
    measure, memory, ops    what is measured: seconds against plain in turns, peak memory, bytes of our kernels
    device                  what only a GPU has: host time, launches, synchronisations
    suites                  which methods do which work: `quick`, `minilm`, `cpu`, `gpu`; one factor is varied at a time
    child, runner, record   one process a measurement, one row of JSON written as soon as it is there
    table, losses, figures  one table, four figures, and where gradalign loses and why
    compare                 two results against each other, with a band for noise

A measurement is a process of its own: a method that fails, hangs or runs out of memory ends as a row with the reason, and
takes nothing with it. In that process the method and plain AdamW take turns, so that what else the machine does hits both.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from gradalign.cli import options

SUITES = ("quick", "minilm", "cpu", "gpu")


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds `bench` and its options."""
    parser = subparsers.add_parser(
        "bench",
        help="time and memory of a step against everything else one could do, on the same work",
        description="Measures seconds per step as a ratio to plain AdamW, peak memory, passes and bytes, for gradalign and its "
        "alternatives on the same work. Rows are written as they are measured: the same command goes on after an interruption.",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--suite", choices=SUITES, help="what to measure (default: quick)")
    what.add_argument("--quick", action="store_true", help="the suite of under 2 minutes")
    what.add_argument(
        "--compare", nargs=2, type=Path, metavar=("A.json", "B.json"), help="B against A: what became slower or larger"
    )
    what.add_argument(
        "--report", type=Path, metavar="A.json", help="table and figures of a result, nothing is measured"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="(default: bench-out)")
    parser.add_argument("--only", metavar="TEXT", help="measure only rows with TEXT in their work or method")
    there = parser.add_mutually_exclusive_group()
    there.add_argument(
        "--fresh", action="store_true", help="forget the rows that are there instead of going on from them"
    )
    there.add_argument("--retry", action="store_true", help="measure again what failed")
    parser.add_argument(
        "--minutes", type=options.positive, help="begin nothing after this time (default: the suite's own bound)"
    )
    parser.add_argument("--device", default=None, help="cpu or cuda (default: cuda for the suite gpu, else cpu)")
    parser.add_argument("--seed", type=options.count(0), help="of weights, data and dropout (default: 0)")
    parser.add_argument("--no-figures", action="store_true", help="do without matplotlib")


def run(args: argparse.Namespace) -> int:
    """Measures, or reads what was measured; 1 where a comparison finds a regression."""
    from benchmarks.steps import commands  # with torch, which the parser does without

    reading = "--compare" if args.compare else "--report" if args.report else None
    options.fill_defaults(
        args, "a suite", reading, only=None, fresh=False, retry=False, minutes=None, device=None, seed=0
    )
    comparing = reading if args.compare else None
    options.fill_defaults(args, "a suite or --report", comparing, out=Path("bench-out"), no_figures=False)
    if args.compare:
        return commands.compare(*args.compare)
    if args.report:
        return commands.report(args.report, args.out, not args.no_figures)
    return commands.measure(args)
