"""Rows and results as JSON: what was measured, where, with what, when."""

from __future__ import annotations

import datetime
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import gradalign
from gradalign._version import __version__
from gradalign.cli import machine
from gradalign.cli.errors import CommandError

PACKAGES = ("torch", "triton", "transformers", "pytorch_optimizer", "numpy")

Row = dict[str, Any]

# What a reader of a result looks up.
RESULT = ("suite", "headline", "complete", "left", "rows")
EVERY_ROW = ("work", "method", "status", "reason", "date", "device", "machine", "versions", "commit", "seed")
WORK = ("name", "model", "k", "size")
MEASURED_ROW = (
    "parameters",
    "parameter_bytes",
    "data",
    "peak_bytes",
    "passes",
    "ratio",
    "ratio_quartiles",
    "rounds",
    "samples_per_second",
)


def provenance(device: str, seed: int) -> Row:
    """What every row carries: machine, versions, commit, seed."""
    cpu = machine.cpu()
    return {
        "device": device,
        "machine": {
            "cpu": cpu["model"],
            "cores": cpu["cores"],
            "threads": cpu["threads"],
            "instruction_set": cpu["instruction_set"],
            "gpus": machine.gpus() if device == "cuda" else [],
        },
        "versions": {"gradalign": __version__, "cuda": torch.version.cuda, **machine.versions(*PACKAGES)},
        "commit": commit(),
        "seed": seed,
    }


def commit() -> str | None:
    """The commit of the source tree, with a + where files differ from it; None outside of one."""
    root = Path(gradalign.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "--short=12", "HEAD")
        return head + ("+" if _git(root, "status", "--porcelain", "--", "gradalign", "csrc", "kernels") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *args: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()


def date() -> str:
    """Now, in UTC."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def key(row: Row) -> tuple[str, str]:
    """What tells rows of a suite apart."""
    return row["work"]["name"], row["method"]


def read_rows(path: Path, device: str) -> list[Row]:
    """The rows of a device written so far, the last of each key; a line cut short by an interruption is left out."""
    rows: dict[tuple[str, str], Row] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if row["device"] == device:
            rows[key(row)] = row
    return list(rows.values())


def append_row(path: Path, row: Row) -> None:
    """One line more, on the disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def read_result(path: Path) -> Row:
    """A result that `bench` wrote.

    Raises:
        CommandError: no such file, or something else in it.
    """
    got = f"expected the JSON of a result of `gradalign bench`; got {path}"
    try:
        result = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CommandError(f"{got}: {error}") from error
    lacking = _lacking(result)
    if lacking:
        raise CommandError(f"{got} without {lacking}")
    return result


def _lacking(result: Any) -> str:
    """What a reader would miss, "" where nothing is missing."""
    lacking = _missing(result, RESULT)
    if lacking or not isinstance(result["rows"], list):
        return lacking or "a list of rows"
    for number, row in enumerate(result["rows"], start=1):
        lacking = _missing(row, EVERY_ROW) or _missing(row["work"], WORK)
        lacking = lacking or (_missing(row, MEASURED_ROW) if row["status"] == "ok" else "")
        if lacking:
            return f"{lacking} in row {number}"
    return ""


def _missing(value: Any, names: Sequence[str]) -> str:
    return ", ".join(name for name in names if not isinstance(value, dict) or name not in value)


def write_result(path: Path, suite: str, headline: str, rows: list[Row], left: list[tuple[str, str]]) -> Row:
    """The whole result of a suite, `left` being what is not measured yet."""
    result = {"suite": suite, "headline": headline, "complete": not left, "left": left, "rows": rows}
    path.write_text(json.dumps(result, indent=1) + "\n")
    return result
