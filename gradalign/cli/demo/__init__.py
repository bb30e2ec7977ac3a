"""`gradalign demo`: trains with and without gradalign on paired seeds, and compares.

Two tasks, each a package with `settings` (its options), `comparison` (all seeds), `report` (the table and the conclusions) and
`plot`: `sites`, reviews from two sites with planted shortcuts, and `reviews`, clean fine-tuning of a pretrained text encoder.

Shared modules: `settings` (the tasks and common options), `backward` and `equal_time` (training), `paired` (confidence
intervals), `verdict` (conclusions in words), `record`, `figure`, `progress`.
"""

from __future__ import annotations

import argparse
import importlib
import time
from dataclasses import asdict

from gradalign.cli import places
from gradalign.cli.demo import settings
from gradalign.cli.workload import assets


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds `demo` and its options."""
    parser = subparsers.add_parser(
        "demo",
        help="train on real text with and without gradalign, and compare",
        description="Trains with and without gradalign from the same weights on the same texts, and compares at equal steps "
        "and at equal time, with intervals over paired seeds. Writes demo.png and demo.json. "
        + assets.needs(*assets.ASSETS),
    )
    settings.add_settings(parser)


def run(args: argparse.Namespace) -> int:
    """Trains, prints the table, writes the plot and the JSON."""
    start = time.perf_counter()
    resolved = settings.resolve(args)
    assets.require_extras()
    from rich.console import Console

    from gradalign.cli.demo import record

    # These need the extras too.
    names = ("comparison", "report", "plot")
    comparison, report, plot = (importlib.import_module(f"{__name__}.{args.task}.{name}") for name in names)
    console = Console(markup=False, emoji=False)  # a name with brackets is a name
    places.make_directory(args.out)
    results = comparison.compare(resolved, console)
    result = record.run_record(asdict(resolved), results, time.perf_counter() - start)
    places.write_json(args.out / "demo.json", result)  # first: a plot or a terminal that fails costs no results
    report.show(result, console)
    plot.save_plot(result, args.out / "demo.png")
    written = f"  {args.out / 'demo.png'} and {args.out / 'demo.json'} written after {result['seconds']:.0f} s."
    console.print(written, highlight=False)
    return 0
