"""What `gradalign bench` does with its options."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

import torch

from gradalign.cli.bench import compare as comparison
from gradalign.cli.bench import losses, record, table
from gradalign.cli.bench.record import Row
from gradalign.cli.bench.runner import Runner
from gradalign.cli.bench.suites import SUITES
from gradalign.cli.errors import CommandError


def measure(args: argparse.Namespace) -> int:
    """Measures a suite and reports it."""
    suite = SUITES[args.suite or "quick"]()
    device = args.device or suite.device
    _check_device(device)
    _check_figures(not args.no_figures)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"--out: expected a directory that can be written; got {args.out}: {error}") from error
    rows_path = args.out / f"{suite.name}.jsonl"
    if args.fresh:
        rows_path.unlink(missing_ok=True)
    runner = Runner(
        suite, rows_path, device, args.seed, lambda line: print(line, flush=True), args.minutes or suite.minutes
    )
    rows, left = runner.run(args.only, args.retry)
    result = record.write_result(args.out / f"{suite.name}.json", suite.name, suite.headline.name, rows, left)
    _write(result, args.out, not args.no_figures)
    return 0


def report(path: Path, out: Path, with_figures: bool) -> int:
    """Table and figures of a result."""
    _check_figures(with_figures)
    result = record.read_result(path)
    out.mkdir(parents=True, exist_ok=True)
    _write(result, out, with_figures)
    return 0


def compare(before: Path, after: Path) -> int:
    """Prints the differences; 1 where something became worse by more than noise."""
    found = comparison.compare(record.read_result(before)["rows"], record.read_result(after)["rows"])
    print(comparison.as_text(found))
    return 1 if any(change.verdict == "worse" for change in found) else 0


def _write(result: Row, out: Path, with_figures: bool) -> None:
    text = "\n\n".join([table.markdown(result), losses.markdown(result), table.provenance(result)])
    (out / f"{result['suite']}.md").write_text(f"# gradalign bench: {result['suite']}\n\n{text}\n")
    print(f"\n{text}\n")
    written = [f"{result['suite']}.md", f"{result['suite']}.json"]
    if with_figures:
        from gradalign.cli.bench import figures  # with matplotlib, which is known to be there by now

        written += figures.save(result, out)
    print(f"{', '.join(written)} written to {out}")


def _check_figures(wanted: bool) -> None:
    if wanted and importlib.util.find_spec("matplotlib") is None:
        raise CommandError("expected matplotlib for the figures; pip install 'gradalign[bench]', or give --no-figures")


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise CommandError(f"--device: expected one that PyTorch can use here; got {device!r}: {reason}") from error
