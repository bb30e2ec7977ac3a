"""Runs the measurements of a suite, each in a process of its own, and writes every row as soon as it is there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import ROOT, provenance, record
from benchmarks.record import Row
from benchmarks.steps.child import MARK
from benchmarks.steps.suites import Measurement, Suite

GRACE = 30.0  # seconds by which the last measurement may pass the bound of the suite


class Request(NamedTuple):
    """Which rows to measure, and for how long.

    Attributes:
        minutes: after which nothing new is begun.
        only: measure rows with this text in their workload or method.
        retry: also measure again what failed.
    """

    minutes: float
    only: str | None = None
    retry: bool = False


class Runner:
    """Goes through a suite.

    Args:
        suite: what to measure.
        path: the file of rows, a line each.
        device: "cpu" or "cuda".
        seed: of weights, data and dropout.
        say: called with a line about every row.
    """

    def __init__(self, suite: Suite, path: Path, device: str, seed: int, say: Callable[[str], None]) -> None:
        self._suite, self._path, self._device, self._seed, self._say = suite, path, device, seed, say
        self._provenance = provenance.provenance(device, seed)

    def run(self, request: Request) -> tuple[list[Row], list[tuple[str, str]]]:
        """Measures what is missing.

        Returns:
            All rows of the suite there are, and the keys of those there are not.

        Raises:
            CommandError: nothing has the text of `only`.
        """
        end = time.monotonic() + 60 * request.minutes
        done = {record.key(row): row for row in record.read_rows(self._path, self._device)}
        todo = self._todo(done, request)
        for number, measurement in enumerate(todo, start=1):
            row = self.measure(measurement, end) if time.monotonic() <= end else None
            if row is None:
                self._say(f"time is up: {len(todo) - number + 1} rows left; the same command goes on")
                break
            record.append_row(self._path, row)
            done[measurement.key] = row
            self._say(f"[{number}/{len(todo)}] {describe(row)}")
        order = [m.key for m in self._suite.measurements]
        return [done[key] for key in order if key in done], [key for key in order if key not in done]

    def _todo(self, done: dict[tuple[str, str], Row], request: Request) -> list[Measurement]:
        wanted = self._suite.matching(request.only)
        todo = [m for m in wanted if m.key not in done or (request.retry and done[m.key]["status"] != "ok")]
        if len(todo) < len(wanted):
            self._say(f"going on: {len(wanted) - len(todo)} of {len(wanted)} rows are in {self._path}")
        return todo

    def measure(self, measurement: Measurement, end: float) -> Row | None:
        """The row of one measurement, whatever becomes of its process; None where the suite's bound has cut it short."""
        left = max(0.0, end - time.monotonic()) + GRACE
        found = in_process(self._asked(measurement), min(measurement.limit, left))
        if found.get("timed_out") and left < measurement.limit:
            return None
        return {
            "workload": measurement.workload.as_dict(),
            "method": measurement.method,
            "date": provenance.date(),
            **self._provenance,
            **found,
            "reason": without_paths(found["reason"]),
        }

    def _asked(self, measurement: Measurement) -> dict[str, Any]:
        return {
            "workload": {name: value for name, value in measurement.workload.as_dict().items() if name != "name"},
            "method": measurement.method,
            "device": self._device,
            "threads": self._provenance["machine"]["threads"],
            "seed": self._seed,
            "seconds": measurement.seconds,
        }


def in_process(asked: dict[str, Any], limit: float) -> Row:
    """What the process found out, or why it did not: {"status", "reason", ...}."""
    command = [sys.executable, "-m", "benchmarks.steps.child", json.dumps(asked)]
    options: dict[str, Any] = {"capture_output": True, "text": True, "check": False, "env": _environment()}
    begun = time.monotonic()
    try:
        done = subprocess.run(command, timeout=limit, **options)
    except subprocess.TimeoutExpired:
        return {"status": "failed", "reason": f"took longer than {limit:.0f} s", "timed_out": True}
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if lines:
        return {**json.loads(lines[-1][len(MARK) :]), "process_seconds": round(time.monotonic() - begun, 1)}
    if done.returncode < 0:
        return {"status": "failed", "reason": f"out of memory, or ended by signal {-done.returncode}"}
    last = (done.stderr.strip().splitlines() or ["nothing on stderr"])[-1]
    return {"status": "failed", "reason": f"exit code {done.returncode}: {last}"}


def _environment() -> dict[str, str]:
    """This process's, with the root on the path: the child finds `benchmarks` from any working directory."""
    path = filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


def without_paths(reason: str | None) -> str | None:
    """The reason without the folders of this machine: results are published."""
    for folder in sorted((str(ROOT), sys.prefix, str(Path.home())), key=len, reverse=True):
        reason = reason.replace(f"{folder}/", "") if reason and len(folder) > 1 else reason
    return reason


def describe(row: Row) -> str:
    """A line about a row."""
    name = f"{row['workload']['name']}: {row['method']}"
    if row["status"] != "ok":
        return f"{name}: {row['reason']}"
    low, high = row["ratio_quartiles"]
    return f"{name}: {row['ratio']:.2f} times plain ({low:.2f} to {high:.2f}, {row['rounds']} rounds)"
