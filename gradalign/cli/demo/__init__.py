"""`gradalign demo`: fine-tunes a pretrained text encoder with AdamW and with gradalign, and compares the two.

Modules: `settings` (the options), `comparison` (all seeds), `seed` (one seed), `train` and `arm` (paired training),
`measure` (alignment and memory), `paired` (confidence intervals), `record`, `report` and `plot` (the results), `progress`.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from pathlib import Path

from gradalign.cli import places
from gradalign.cli.demo import settings
from gradalign.cli.workload import assets


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds `demo` and its options."""
    parser = subparsers.add_parser(
        "demo",
        help="fine-tune a pretrained BERT with AdamW and with gradalign, and compare",
        description="Fine-tunes a pretrained text encoder with AdamW and with gradalign from the same weights, on the same "
        "batches, with the same dropout, and compares them at equal steps and at equal time. Writes demo.png and demo.json.",
    )
    settings.add_settings(parser)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("demo-out"),
        metavar="DIR",
        help="directory of plot and JSON (default: demo-out)",
    )


def run(args: argparse.Namespace) -> int:
    """Trains, prints the table, writes the plot and the JSON."""
    start = time.perf_counter()
    resolved = settings.resolve(args)
    assets.require_extras()
    from rich.console import Console

    from gradalign.cli.demo import comparison, plot, record, report  # these need the extras too

    console = Console(markup=False, emoji=False)  # a name with brackets is a name
    places.make_directory(args.out)
    seeds, memory = comparison.compare(resolved, console)
    result = record.run_record(asdict(resolved), seeds, memory, time.perf_counter() - start)
    report.show(result, console)
    plot.save_plot(result, args.out / "demo.png")
    places.write_json(args.out / "demo.json", result)
    written = f"  {args.out / 'demo.png'} and {args.out / 'demo.json'} written after {result['seconds']:.0f} s."
    console.print(written, highlight=False)
    return 0
