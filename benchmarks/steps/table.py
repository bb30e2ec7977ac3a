"""Rows of steps in tables: what a step costs beside plain on the same workload."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.record import Fields, Row
from benchmarks.steps.contenders import CONTENDERS
from benchmarks.tables import as_markdown

FIELDS = Fields(
    workload=("name", "model", "k", "size"),
    figures=(
        "parameters",
        "parameter_bytes",
        "data",
        "peak_bytes",
        "passes",
        "ratio",
        "ratio_quartiles",
        "rounds",
        "samples_per_second",
    ),
)
COLUMNS = (
    "method",
    "time / plain",
    "quartiles",
    "samples/s",
    "extra memory",
    "in copies",
    "passes",
    "passes / plain's",
)
COPIES_FROM = 32e6  # bytes of parameters; for smaller models the noise of peak memory is a copy and more
GPU_COLUMNS = ("host ms", "launches", "synchronisations")


@dataclass(frozen=True)
class Line:
    """A row beside the plain row of its workload."""

    row: Row
    plain: Row | None

    @property
    def name(self) -> str:
        """The method."""
        return self.row["method"]

    @property
    def ok(self) -> bool:
        """Whether it was measured."""
        return self.row["status"] == "ok"

    @property
    def family(self) -> str:
        """The method's family, "other" for one this version does not know."""
        return CONTENDERS[self.name].family if self.name in CONTENDERS else "other"

    @property
    def extra_bytes(self) -> int | None:
        """Peak memory above plain's."""
        if not self.ok or self.plain is None or None in (self.row["peak_bytes"], self.plain["peak_bytes"]):
            return None
        return self.row["peak_bytes"] - self.plain["peak_bytes"]

    @property
    def extra_copies(self) -> float | None:
        """The same in copies of the parameters."""
        return None if self.extra_bytes is None else self.extra_bytes / self.row["parameter_bytes"]

    @property
    def pass_factor(self) -> float:
        """Passes of a step over the k of plain: the least its time can be where nothing but passes takes time."""
        return self.row["passes"] / self.row["workload"]["k"]


def lines(rows: Iterable[Row], workload: str) -> list[Line]:
    """The rows of a workload, each beside plain."""
    own = [row for row in rows if row["workload"]["name"] == workload]
    plain = next((row for row in own if row["method"] == "plain" and row["status"] == "ok"), None)
    return [Line(row, plain) for row in own]


def workloads(rows: Iterable[Row], first: str | None = None) -> list[str]:
    """The workloads of the rows in their order, `first` in front."""
    names = list(dict.fromkeys(row["workload"]["name"] for row in rows))
    return sorted(names, key=lambda name: name != first)


def cells(line: Line) -> list[str]:
    """The columns of a line that was measured."""
    row = line.row
    low, high = row["ratio_quartiles"]
    extra, copies = line.extra_bytes, line.extra_copies
    return [
        line.name,
        f"{row['ratio']:.2f}",
        f"{low:.2f} to {high:.2f}",
        f"{row['samples_per_second']:.3g}",
        "" if extra is None else f"{extra / 1e6:+.0f} MB",
        "" if copies is None or row["parameter_bytes"] < COPIES_FROM else f"{copies:+.1f}",
        f"{row['passes']:g}",
        f"{line.pass_factor:.2f}",
    ]


def gpu_cells(line: Line) -> list[str]:
    """What only a GPU has."""
    row = line.row
    if row.get("launches") is None:
        return [""] * len(GPU_COLUMNS)
    return [f"{1000 * row['host_seconds']:.1f}", str(row["launches"]), str(row["synchronisations"])]


def of_workload(rows: Sequence[Row], workload: str) -> str:
    """The Markdown table of a workload, and below it what could not be measured."""
    found = lines(rows, workload)
    measured = [line for line in found if line.ok]
    on_gpu = any(line.row.get("launches") is not None for line in measured)
    header = [*COLUMNS, *(GPU_COLUMNS if on_gpu else ())]
    body = [[*cells(line), *(gpu_cells(line) if on_gpu else ())] for line in measured]
    text = as_markdown(header, body) if body else "Nothing was measured."
    failed = [f"- {line.name}: not measured: {line.row['reason']}" for line in found if not line.ok]
    notes = [
        f"- {line.name}: {CONTENDERS[line.name].note}"
        for line in measured
        if line.name in CONTENDERS and CONTENDERS[line.name].note
    ]
    return "\n".join([text, *(["", *failed, *notes] if failed or notes else [])])


def markdown(result: Row) -> str:
    """A section for every workload, the headline's first."""
    rows = result["rows"]
    names = workloads(rows, result["headline"])
    parts = [f"## {_title(rows, name)}\n\n{of_workload(rows, name)}" for name in names]
    if not result["complete"]:
        parts.append(f"{len(result['left'])} rows of the suite are not measured yet.")
    return "\n\n".join(parts)


def provenance(result: Row) -> str:
    """Where and with what the rows were measured."""
    rows = result["rows"]
    if not rows:
        return "No rows."
    found = ["## Where this was measured", ""]
    for machine in _distinct(_machine(row) for row in rows):
        found.append(f"- {machine}")
    for versions in _distinct(_versions(row) for row in rows):
        found.append(f"- {versions}")
    dates = sorted(row["date"] for row in rows)
    commits = ", ".join(_distinct(str(row["commit"]) for row in rows))
    seeds = ", ".join(_distinct(str(row["seed"]) for row in rows))
    found.append(f"- {dates[0]} to {dates[-1]}, commit {commits}, seed {seeds}")
    return "\n".join(found)


def _title(rows: Sequence[Row], workload: str) -> str:
    measured = next((row for row in rows if row["workload"]["name"] == workload and row["status"] == "ok"), None)
    if measured is None:
        return workload
    return f"{workload} ({measured['parameters'] / 1e6:.3g}M parameters; {measured['data']})"


def _machine(row: Row) -> str:
    machine = row["machine"]
    gpus = ", ".join(gpu["name"] for gpu in machine["gpus"])
    return (gpus + "; " if gpus else "") + (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, {machine['instruction_set']}"
    )


def _versions(row: Row) -> str:
    return ", ".join(f"{name} {version}" for name, version in row["versions"].items() if version is not None)


def _distinct(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))
