"""What `python -m benchmarks` does with its options."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

from benchmarks import record
from benchmarks.errors import CommandError
from benchmarks.record import Row
from benchmarks.steps import compare as comparison
from benchmarks.steps import shortfalls, table
from benchmarks.steps.runner import Request, Runner
from benchmarks.steps.suites import SUITES
from gradalign.cli import places


def measure(args: argparse.Namespace) -> int:
    """Measures a suite and reports it."""
    suite = SUITES[args.suite or "quick"]()
    device = args.device or suite.device
    suite.matching(args.only)  # nothing is made where this refuses
    places.usable_device(device)
    _check_figures(not args.no_figures)
    places.make_directory(args.out)
    rows_path = args.out / f"{suite.name}.jsonl"
    if args.fresh:
        rows_path.unlink(missing_ok=True)
    runner = Runner(suite, rows_path, device, args.seed, _say)
    rows, left = runner.run(Request(args.minutes or suite.minutes, args.only, args.retry))
    result = record.result(suite.name, suite.headline.name, rows, left)
    record.write_result(args.out / f"{suite.name}.json", result)
    _write(result, args.out, not args.no_figures, [f"{suite.name}.json"])
    return 0


def report(path: Path, out: Path, with_figures: bool) -> int:
    """Table and figures of a result."""
    _check_figures(with_figures)
    result = record.read_result(path, table.FIELDS)
    places.make_directory(out)
    _write(result, out, with_figures, [])
    return 0


def compare(before: Path, after: Path) -> int:
    """Prints the differences; 1 where something became worse by more than noise."""
    old, new = (record.read_result(path, table.FIELDS)["rows"] for path in (before, after))
    missing, found = comparison.one_sided(old, new), comparison.compare(old, new)
    print("\n".join([comparison.as_text(found), *missing]))
    return 1 if any(change.verdict == "worse" for change in found) else 0


def _say(line: str) -> None:
    print(line, flush=True)


def _write(result: Row, out: Path, with_figures: bool, written: list[str]) -> None:
    text = "\n\n".join([table.markdown(result), shortfalls.markdown(result), table.provenance(result)])
    places.write_text(out / f"{result['suite']}.md", f"# Benchmarks: {result['suite']}\n\n{text}\n")
    print(f"\n{text}\n")
    written = [f"{result['suite']}.md", *written]
    if with_figures:
        from benchmarks.steps import figures  # loads matplotlib, which --no-figures does without

        written += figures.save(result, out)
    print(f"{', '.join(written)} written to {out}")


def _check_figures(wanted: bool) -> None:
    if wanted and importlib.util.find_spec("matplotlib") is None:
        raise CommandError("expected matplotlib for the figures; pip install matplotlib, or give --no-figures")
