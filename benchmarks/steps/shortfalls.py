"""Where gradalign's default is slower or larger than something else, and why."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.record import Row
from benchmarks.steps.table import Line, lines

DEFAULT = "split m=k/4"
TIME_BAND = 0.02  # a smaller difference of two medians is taken for noise
MEMORY_BAND = 0.1  # of a copy of the parameters


def markdown(result: Row) -> str:
    """A section with every shortfall on the headline's workload."""
    found = of_workload(result["rows"], result["headline"])
    body = "\n".join(f"- {text}" for text in found) if found else f"None on {result['headline']}."
    return f"## Where gradalign is slower or larger\n\nAgainst its default, `{DEFAULT}`, on {result['headline']}:\n\n{body}"


def of_workload(rows: Sequence[Row], workload: str) -> list[str]:
    """A sentence for every method that is faster or smaller than the default on this workload."""
    measured = [line for line in lines(rows, workload) if line.ok]
    default = next((line for line in measured if line.name == DEFAULT), None)
    if default is None:
        return []
    others = [line for line in measured if not line.name.startswith(DEFAULT)]
    return [text for line in others for text in (_time(line, default), _memory(line, default)) if text]


def _time(line: Line, default: Line) -> str | None:
    theirs, ours = line.row["ratio"], default.row["ratio"]
    if theirs >= ours * (1 - TIME_BAND):
        return None
    return f"{line.name} takes {theirs:.2f} times plain's time, the default {ours:.2f}: {_why(line, default)}."


def _why(line: Line, default: Line) -> str:
    theirs, ours = line.row["passes"], default.row["passes"]
    if line.family == "plain":
        return f"it computes no term and runs {theirs:g} passes instead of {ours:g}"
    if theirs < ours:
        return f"it runs {theirs:g} passes instead of {ours:g}" + (
            "; it does not estimate the same term" if line.family != "same term" else ""
        )
    return "with no fewer passes, so that the difference is arithmetic on parameters, the host, or noise"


def _memory(line: Line, default: Line) -> str | None:
    theirs, ours = line.extra_copies, default.extra_copies
    if theirs is None or ours is None or theirs >= ours - MEMORY_BAND:
        return None
    why = (
        "it keeps no backup of the parameters" if line.family == "plain" else "its backup is smaller, or shorter-lived"
    )
    return f"{line.name} needs {theirs:+.1f} copies of the parameters above plain, the default {ours:+.1f}: {why}."
