"""Writes the tables of README.md and docs/ between two markers on each page, from benchmarks/results.

`python -m benchmarks.pages [--check]`. With --check nothing is written; the exit code is 1 where a page differs. Of results
with the same headline on the same device, the one with most rows of it is taken; `quick` is not published, and the rows of
`host` have a table of their own.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import ROOT, record
from benchmarks.kernels import measurement
from benchmarks.kernels import tables as kernel_tables
from benchmarks.record import Fields, Row
from benchmarks.steps import shortfalls, table
from benchmarks.tables import as_markdown, place

RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- bench:start -->", "<!-- bench:end -->"
ANY = Fields(workload=("name",), figures=())


def steps(folder: Path) -> list[Row]:
    """The results of steps to publish: one for every headline and device."""
    best: dict[tuple[str, str], Row] = {}
    for path in sorted(folder.glob("*.json")):
        result = record.read_result(path, ANY)
        rows = headline_rows(result)
        if not rows or result["suite"] in ("quick", "host"):
            continue
        key = result["headline"], rows[0]["device"]
        if key not in best or len(rows) > len(headline_rows(best[key])):
            best[key] = record.read_result(path, table.FIELDS)
    return [best[key] for key in sorted(best, key=lambda key: (key[1], key[0]))]


def kernels(folder: Path, suite: str) -> list[Row]:
    """The results of `ops` or `optimizers`, one for every machine."""
    return [record.read_result(path, measurement.FIELDS) for path in sorted(folder.glob(f"{suite}-*.json"))]


def headline_rows(result: Row) -> list[Row]:
    """The rows that were measured on the headline's workload; none for kernels, which have no headline."""
    return [row for row in result["rows"] if row["workload"]["name"] == result["headline"] and row["status"] == "ok"]


def cost(folder: Path) -> str:
    """What stands in README.md: a caption and a table for each result."""
    return "\n\n".join(f"{caption(result)}\n\n{small_table(headline_rows(result))}" for result in steps(folder))


def shortfall_list(folder: Path) -> str:
    """What stands in docs/benchmarks.md: what is faster or smaller than the default, for each result."""
    sections = []
    for result in steps(folder):
        found = shortfalls.of_workload(result["rows"], result["headline"])
        if found:
            where = f"On {result['headline']} ({place(headline_rows(result)[0])}):"
            sections.append(f"{where}\n\n" + "\n".join(f"- {text}" for text in found))
    return "\n\n".join(sections)


def caption(result: Row) -> str:
    """What, on which machine, with what, when."""
    row = headline_rows(result)[0]
    return (
        f"Seconds per optimizer step on {result['headline']} ({row['parameters'] / 1e6:.1f}M parameters, {row['data']}; "
        f"{place(row)}): each method in turns with plain AdamW in one "
        "process, median and quartiles of the paired ratios; memory is the peak above plain AdamW's."
    )


def small_table(rows: Sequence[Row]) -> str:
    """The columns that matter most, fastest first."""
    lines = table.lines(rows, rows[0]["workload"]["name"])
    body = []
    for line in sorted(lines, key=lambda line: (line.name != "plain", line.row["ratio"])):
        low, high = line.row["ratio_quartiles"]
        copies = line.extra_copies
        time = f"{line.row['ratio']:.2f} ({low:.2f} to {high:.2f})"
        memory = "" if copies is None else f"{copies:+.1f} ({(line.extra_bytes or 0) / 1e6:+.0f} MB)"
        body.append([line.name, time, memory, f"{line.row['passes']:g}"])
    return as_markdown(("method", "time / plain", "extra memory in copies of the parameters", "passes"), body)


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
    "README.md": cost,
    "docs/benchmarks.md": shortfall_list,
    "docs/kernels.md": lambda folder: kernel_tables.of_ops(kernels(folder, "ops")),
    "docs/optimizers.md": lambda folder: kernel_tables.of_optimizers(kernels(folder, "optimizers")),
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
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pages",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where a page differs")
    check = parser.parse_args().check
    found = differing()
    if not check:
        for path, after in found.items():
            path.write_text(after)
    return int(check and bool(found))


if __name__ == "__main__":
    raise SystemExit(main())
