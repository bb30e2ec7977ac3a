"""The options that both commands share, and what they print and write."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import provenance, record
from benchmarks.record import Row
from benchmarks.tables import as_markdown


class Setting(NamedTuple):
    """What is measured on, for how long, and what every row carries."""

    device: torch.device
    quick: bool
    seconds: float
    provenance: dict[str, Any]


def arguments(description: str | None, argv: list[str] | None) -> argparse.Namespace:
    """The parsed options."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows there")
    parser.add_argument("--threads", type=int, help="torch.set_num_threads")
    parser.add_argument("--seconds", type=float, default=120, help="for all rounds together, about")
    return parser.parse_args(argv)


def run(suite: str, measured: Callable[[Setting], Iterator[list[Row]]], chosen: argparse.Namespace) -> list[Row]:
    """Prints a table for each workload, and writes the JSON anew after each.

    Args:
        suite: "ops" or "optimizers".
        measured: yields the rows of one workload after the other.
        chosen: the parsed options.
    """
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    device = torch.device(chosen.device)
    carried = {"date": provenance.date(), **provenance.provenance(device.type, seed=0)}
    rows: list[Row] = []
    for found in measured(Setting(device, chosen.quick, chosen.seconds, carried)):
        rows += found
        print(f"{_table(found)}\n", flush=True)
        if chosen.json:
            record.write_result(chosen.json, record.result(suite, None, rows))
    return rows


def _table(rows: list[Row]) -> str:
    workload = rows[0]["workload"]
    header = (f"{workload['name']}, {workload['dtype']}", "method", "us", "GB/s", "of y += a x")
    body = [
        [r["op"], r["method"], f"{r['microseconds']:.0f}", f"{r['gigabytes_per_second']:.1f}", f"{r['of_add']:.2f}"]
        for r in rows
    ]
    return as_markdown(header, body, num_text=2)
