"""Runs the measurements of a suite, each in a process of its own, and writes every row as soon as it is there."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradalign
from benchmarks.steps import record
from benchmarks.steps.child import MARK
from benchmarks.steps.record import Row
from benchmarks.steps.suites import Measurement, Suite

GRACE = 30.0  # seconds by which the last measurement may pass the bound of the suite


class Runner:
    """Goes through a suite.

    Args:
        suite: what to measure.
        path: the file of rows, a line each.
        device: "cpu" or "cuda".
        seed: of weights, data and dropout.
        say: told a line about every row.
        minutes: after which nothing new is begun.
    """

    def __init__(
        self, suite: Suite, path: Path, device: str, seed: int, say: Callable[[str], None], minutes: float
    ) -> None:
        self._suite, self._path, self._device, self._seed, self._say = suite, path, device, seed, say
        self._provenance = record.provenance(device, seed)
        self._end = time.monotonic() + 60 * minutes

    def run(self, only: str | None = None, retry: bool = False) -> tuple[list[Row], list[tuple[str, str]]]:
        """Measures what is missing.

        Args:
            only: measure rows with this text in their work or method.
            retry: also measure again what failed.

        Returns:
            All rows of the suite there are, and the keys of those there are not.

        Raises:
            CommandError: nothing has this text.
        """
        done = {record.key(row): row for row in record.read_rows(self._path, self._device)}
        wanted = self._suite.matching(only)
        todo = [m for m in wanted if m.key not in done or (retry and done[m.key]["status"] != "ok")]
        if len(todo) < len(wanted):
            self._say(f"going on: {len(wanted) - len(todo)} of {len(wanted)} rows are in {self._path}")
        for number, measurement in enumerate(todo, start=1):
            row = self.measure(measurement) if time.monotonic() <= self._end else None
            if row is None:
                self._say(f"time is up: {len(todo) - number + 1} rows left; the same command goes on")
                break
            record.append_row(self._path, row)
            done[measurement.key] = row
            self._say(f"[{number}/{len(todo)}] {describe(row)}")
        order = [m.key for m in self._suite.measurements]
        return [done[key] for key in order if key in done], [key for key in order if key not in done]

    def measure(self, measurement: Measurement) -> Row | None:
        """The row of one measurement, whatever becomes of its process; None where the suite's bound has cut it short."""
        left = max(0.0, self._end - time.monotonic()) + GRACE
        found = in_process(self._request(measurement), min(measurement.limit, left))
        if found.get("timed_out") and left < measurement.limit:
            return None
        return {
            "work": measurement.work.as_dict(),
            "method": measurement.method,
            "date": record.date(),
            **self._provenance,
            **found,
            "reason": without_paths(found["reason"]),
        }

    def _request(self, measurement: Measurement) -> dict[str, Any]:
        return {
            "work": {name: value for name, value in measurement.work.as_dict().items() if name != "name"},
            "method": measurement.method,
            "device": self._device,
            "threads": self._provenance["machine"]["threads"],
            "seed": self._seed,
            "seconds": measurement.seconds,
        }


def in_process(request: dict[str, Any], limit: float) -> Row:
    """What the process found out, or why it did not: {"status", "reason", ...}."""
    command = [sys.executable, "-m", "benchmarks.steps.child", json.dumps(request)]
    begun = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return {"status": "failed", "reason": f"took longer than {limit:.0f} s", "timed_out": True}
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if lines:
        return {**json.loads(lines[-1][len(MARK) :]), "process_seconds": round(time.monotonic() - begun, 1)}
    if done.returncode < 0:
        return {"status": "failed", "reason": f"out of memory, or ended by signal {-done.returncode}"}
    last = (done.stderr.strip().splitlines() or ["nothing on stderr"])[-1]
    return {"status": "failed", "reason": f"exit code {done.returncode}: {last}"}


def without_paths(reason: str | None) -> str | None:
    """The reason without the folders of this machine: results are published."""
    folders = (str(Path(gradalign.__file__).parents[1]), sys.prefix, str(Path.home()))
    for folder in sorted(folders, key=len, reverse=True):
        reason = reason.replace(f"{folder}/", "") if reason and len(folder) > 1 else reason
    return reason


def describe(row: Row) -> str:
    """A line about a row."""
    name = f"{row['work']['name']}: {row['method']}"
    if row["status"] != "ok":
        return f"{name}: {row['reason']}"
    low, high = row["ratio_quartiles"]
    return f"{name}: {row['ratio']:.2f} times plain ({low:.2f} to {high:.2f}, {row['rounds']} rounds)"
