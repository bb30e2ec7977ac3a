"""What `gradalign bench` does with its options."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

from benchmarks.steps import compare as comparison
from benchmarks.steps import losses, record, table
from benchmarks.steps.record import Row
from benchmarks.steps.runner import Runner
from benchmarks.steps.suites import SUITES
from gradalign.cli import places
from gradalign.cli.errors import CommandError


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
    runner = Runner(
        suite, rows_path, device, args.seed, lambda line: print(line, flush=True), args.minutes or suite.minutes
    )
    rows, left = runner.run(args.only, args.retry)
    result = record.write_result(args.out / f"{suite.name}.json", suite.name, suite.headline.name, rows, left)
    _write(result, args.out, not args.no_figures, [f"{suite.name}.json"])
    return 0


def report(path: Path, out: Path, with_figures: bool) -> int:
    """Table and figures of a result."""
    _check_figures(with_figures)
    result = record.read_result(path)
    places.make_directory(out)
    _write(result, out, with_figures, [])
    return 0


def compare(before: Path, after: Path) -> int:
    """Prints the differences; 1 where something became worse by more than noise."""
    old, new = (record.read_result(path)["rows"] for path in (before, after))
    missing, found = comparison.one_sided(old, new), comparison.compare(old, new)
    print("\n".join([comparison.as_text(found), *missing]))
    return 1 if any(change.verdict == "worse" for change in found) else 0


def _write(result: Row, out: Path, with_figures: bool, written: list[str]) -> None:
    text = "\n\n".join([table.markdown(result), losses.markdown(result), table.provenance(result)])
    (out / f"{result['suite']}.md").write_text(f"# gradalign bench: {result['suite']}\n\n{text}\n")
    print(f"\n{text}\n")
    written = [f"{result['suite']}.md", *written]
    if with_figures:
        from benchmarks.steps import figures  # with matplotlib, which is known to be there by now

        written += figures.save(result, out)
    print(f"{', '.join(written)} written to {out}")


def _check_figures(wanted: bool) -> None:
    if wanted and importlib.util.find_spec("matplotlib") is None:
        raise CommandError("expected matplotlib for the figures; pip install 'gradalign[bench]', or give --no-figures")
