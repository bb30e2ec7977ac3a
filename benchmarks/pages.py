"""Writes the tables of README.md, docs/kernels.md and docs/optimizers.md between their two markers, from benchmarks/results.

`python benchmarks/readme_table.py [--check]`. With --check nothing is written; the exit code is 1 where a page differs.
Of results with the same headline on the same device, the one with most rows of it is taken; `quick` is none to publish.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.steps import losses, table
from benchmarks.steps.record import Row

sys.path.insert(0, str(Path(__file__).parent))

import kernel_tables

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- bench:start -->", "<!-- bench:end -->"


def published(folder: Path) -> list[Row]:
    """The results that the table is made of: one for every headline and device."""
    best: dict[tuple[str, str], Row] = {}
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text())
        if "headline" not in result or result["suite"] == "quick" or not headline_rows(result):
            continue
        key = result["headline"], result["rows"][0]["device"]
        if key not in best or len(headline_rows(result)) > len(headline_rows(best[key])):
            best[key] = result
    return [best[key] for key in sorted(best, key=lambda key: (key[1], key[0]))]


def headline_rows(result: Row) -> list[Row]:
    """The rows that were measured on the headline's work."""
    return [row for row in result["rows"] if row["work"]["name"] == result["headline"] and row["status"] == "ok"]


def block(folder: Path = RESULTS) -> str:
    """What stands between the markers; nothing where nothing was measured."""
    return "\n\n".join(section(result) for result in published(folder))


def section(result: Row) -> str:
    """Caption, table, losses."""
    rows = headline_rows(result)
    found = losses.of_work(result["rows"], result["headline"])
    parts = [caption(result, rows[0]), small_table(rows)]
    if found:
        parts.append("Where gradalign is slower or larger:\n\n" + "\n".join(f"- {text}" for text in found))
    return "\n\n".join(parts)


def caption(result: Row, row: Row) -> str:
    """What, on which machine, with what, when."""
    return (
        f"Seconds per optimizer step on {result['headline']} ({row['parameters'] / 1e6:.1f}M parameters, {row['data']}; "
        f"{kernel_tables.where(row)}): each method in turns with plain AdamW in one "
        "process, median and quartiles of the paired ratios; memory is the peak above plain AdamW's."
    )


def small_table(rows: list[Row]) -> str:
    """The columns that matter most, fastest first."""
    lines = table.lines(rows, rows[0]["work"]["name"])
    body = []
    for line in sorted(lines, key=lambda line: (line.name != "plain", line.row["ratio"])):
        low, high = line.row["ratio_quartiles"]
        copies = line.extra_copies
        time = f"{line.row['ratio']:.2f} ({low:.2f} to {high:.2f})"
        memory = "" if copies is None else f"{copies:+.1f} ({(line.extra_bytes or 0) / 1e6:+.0f} MB)"
        body.append([line.name, time, memory, f"{line.row['passes']:g}"])
    return table.as_markdown(("method", "time / plain", "extra memory in copies of the parameters", "passes"), body)


def with_block(page: str, text: str, name: str = "README.md") -> str:
    """The page with this text between its markers.

    Raises:
        ValueError: not exactly one of each marker, in this order.
    """
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        raise ValueError(f"{name}: expected {BEGIN} and then {END}, once each; put them where the table belongs")
    head, _, rest = page.partition(BEGIN)
    tail = rest.partition(END)[2]
    return f"{head}{BEGIN}\n{text}\n{END}{tail}" if text else f"{head}{BEGIN}\n{END}{tail}"


PAGES: dict[str, Callable[[Path], str]] = {
    "README.md": block,
    "docs/kernels.md": kernel_tables.of_kernels,
    "docs/optimizers.md": kernel_tables.of_steps,
}


def differing() -> dict[Path, str]:
    """The pages that are not what the results give, as they should be."""
    found = {}
    for name, text_of in PAGES.items():
        page = (ROOT / name).read_text()
        after = with_block(page, text_of(RESULTS), name)
        if after != page:
            found[ROOT / name] = after
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where a page differs")
    check = parser.parse_args().check
    found = differing()
    if not check:
        for path, after in found.items():
            path.write_text(after)
    return int(check and bool(found))


if __name__ == "__main__":
    raise SystemExit(main())
