"""The tasks and their options: some that all tasks share, and for each task some of its own."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from gradalign.cli import options
from gradalign.cli.demo.reviews import settings as reviews
from gradalign.cli.demo.sites import settings as sites

# Each has SUMMARY, DEFAULTS (of its own options), `add_settings` and `resolve`.
TASKS: dict[str, Any] = {"sites": sites, "reviews": reviews}


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Adds an option for each setting; one of a single task is None unless it is given."""
    add = parser.add_argument
    summaries = "; ".join(f"{name}: {task.SUMMARY}" for name, task in TASKS.items())
    add("--task", choices=list(TASKS), default="sites", help=f"{summaries} (default: sites)")
    add(
        "--steps",
        type=options.count(1),
        metavar="N",
        help="optimizer steps of every arm (default: 100 for sites; for reviews 60 with bert-tiny, else 40)",
    )
    add(
        "--seeds",
        type=options.count(1),
        metavar="N",
        help="number of paired runs; 3 or more give an interval (default: 5 for sites; for reviews 3 with bert-tiny, else 1)",
    )
    add("--first-seed", type=options.count(0), default=0, metavar="N", help="the first of the seeds (default: 0)")
    add(
        "--out",
        type=Path,
        default=Path("demo-out"),
        metavar="DIR",
        help="directory of plot and JSON (default: demo-out)",
    )
    for name, task in TASKS.items():
        task.add_settings(parser.add_argument_group(f"only with --task {name}"))
        parser.set_defaults(**dict.fromkeys(task.DEFAULTS))


def resolve(args: argparse.Namespace) -> Any:
    """The settings of the chosen task with all defaults filled in.

    Raises:
        CommandError: an option would have no effect, or one is missing.
    """
    for name, task in TASKS.items():
        instead = None if name == args.task else f"--task {args.task}"
        options.fill_defaults(args, f"--task {name}", instead, **task.DEFAULTS)
    return TASKS[args.task].resolve(args)
