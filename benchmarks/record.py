"""Results as JSON: one row a measurement, whether of a step, a kernel or an optimizer.

A row says what was measured (`workload`, `method`; `op` for kernels), how it ended (`status`, `reason`), when, where and with
what (see `provenance`), and its figures. A result is all rows of a suite.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import json_lines
from benchmarks.errors import CommandError
from gradalign.cli import places

Row = dict[str, Any]

RESULT = ("suite", "headline", "complete", "left", "rows")
EVERY_ROW = ("workload", "method", "status", "reason", "date", "device", "machine", "versions", "commit", "seed")


class Fields(NamedTuple):
    """What a reader looks up beside `EVERY_ROW`: of the workload, and of a row whose status is "ok"."""

    workload: tuple[str, ...]
    figures: tuple[str, ...]


def key(row: Row) -> tuple[str, str]:
    """What tells rows of a suite of steps apart."""
    return row["workload"]["name"], row["method"]


def read_rows(path: Path, device: str) -> list[Row]:
    """The rows of a device written so far, the last of each key.

    A line cut short by an interruption and rows in an earlier format are left out: they are measured again.
    """
    rows: dict[tuple[str, str], Row] = {}
    for row in json_lines.read(path):
        if not _missing(row, EVERY_ROW) and not _missing(row["workload"], ("name",)) and row["device"] == device:
            rows[key(row)] = row
    return list(rows.values())


def append_row(path: Path, row: Row) -> None:
    """One line more, on the disk when this returns; a line that was cut short before it is left to itself."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(f"{json.dumps(row)}\n".encode())
        file.flush()
        os.fsync(file.fileno())


def result(suite: str, headline: str | None, rows: Sequence[Row], left: Sequence[Any] = ()) -> Row:
    """The rows of a suite; `headline` is the workload that its first table is about, `left` what is not measured yet."""
    return {"suite": suite, "headline": headline, "complete": not left, "left": list(left), "rows": list(rows)}


def write_result(path: Path, found: Row) -> None:
    """A line for each row; all of the file or nothing, whenever the process is stopped."""
    head = json.dumps({name: found[name] for name in RESULT if name != "rows"})
    rows = ",\n".join(json.dumps(row) for row in found["rows"])
    places.write_text(path, f'{head[:-1]}, "rows": [\n{rows}\n]}}\n')


def read_result(path: Path, fields: Fields) -> Row:
    """A result with these fields.

    Raises:
        CommandError: no such file, or something else in it.
    """
    expected = f"expected a result of the benchmarks as JSON; got {path}"
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CommandError(f"{expected}: {error}") from error
    missing = _missing_in_result(found, fields)
    if missing:
        raise CommandError(f"{expected} without {missing}")
    return found


def _missing_in_result(found: Any, fields: Fields) -> str:
    """What a reader would miss, "" where nothing is missing."""
    missing = _missing(found, RESULT)
    if missing or not isinstance(found["rows"], list):
        return missing or "a list of rows"
    for number, row in enumerate(found["rows"], start=1):
        missing = _missing(row, EVERY_ROW) or _missing(row["workload"], fields.workload)
        missing = missing or (_missing(row, fields.figures) if row["status"] == "ok" else "")
        if missing:
            return f"{missing} in row {number}"
    return ""


def _missing(value: Any, names: Sequence[str]) -> str:
    return ", ".join(name for name in names if not isinstance(value, dict) or name not in value)
