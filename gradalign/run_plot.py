"""The plot of a run: what every logged step told about the agreement of its gradients."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from numbers import Real
from os import PathLike
from typing import Any, NamedTuple

from gradalign.engine import validation

COLORS = ("#3b6ea8", "#d9572b")


class Panel(NamedTuple):
    """One pair of axes: its label, the fields drawn in it, and its scale."""

    label: str
    names: tuple[str, ...]
    scale: str = "linear"


PANELS = (
    Panel("loss", ("loss",)),
    Panel("mean $g_i \\cdot g_j$", ("dot",)),
    Panel("mean $\\cos(g_i, g_j)$", ("cosine",)),
    Panel("norm", ("term_norm", "grad_norm"), "log"),
    Panel("displacement cosine", ("displacement_cosine",)),
    Panel("noise scale [micro-batches]", ("noise_scale",), "symlog"),
)


def plot(
    run: str | PathLike[str] | Iterable[Mapping[str, Any]], path: str | PathLike[str], *, prefix: str = "align/"
) -> None:
    """Draw loss, dot, cosine, norms of term and gradient, displacement cosine and noise scale over the steps of a run.

    A quantity that no row has leaves its panel out. Needs matplotlib.

    Args:
        run: a file of JSON lines, or the rows themselves, such as `trainer.state.log_history` of a Hugging Face Trainer. Rows
            are what `logs` returns, beside anything else; "step" is the horizontal axis, or else the number of the row. A last
            line that is not yet complete is left out.
        path: where the picture goes; its ending says the format.
        prefix: of the names; where no row has it, names without it are taken.

    Raises:
        ValueError: a run without any of these quantities, or a line that is no JSON object.
        ImportError: no matplotlib.
    """
    rows = _rows(run)
    curves = {name: _curve(rows, prefix, name) for panel in PANELS for name in panel.names}
    panels = [panel for panel in PANELS if any(curves[name][0] for name in panel.names)]
    if not panels:
        raise ValueError(
            f"plot: expected rows with fields of gradalign.telemetry.logs, such as {prefix}grad_norm; got {len(rows)} rows "
            f"without any; log them with the prefix {prefix!r}, or say prefix="
        )
    figure = validation.figure_class("plot")(figsize=(8, 1 + 1.7 * len(panels)), layout="constrained")
    every = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, panel in zip(every, panels, strict=True):
        _draw(axes, panel, curves)
    every[-1].set_xlabel("step")
    figure.savefig(path, dpi=150)


def _rows(run: str | PathLike[str] | Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows of a run."""
    if isinstance(run, (str, PathLike)):
        return [_row(line, f"line {number} of {run}") for number, line in _lines(run)]
    rows = [] if isinstance(run, Mapping) else list(run)
    if not rows or not all(isinstance(row, Mapping) for row in rows):
        raise ValueError(
            f"plot: expected a list with a mapping for each step, as gradalign.telemetry.logs returns it; got "
            f"{type(run).__name__}{'' if isinstance(run, Mapping) else ' of other things, or an empty one'}"
        )
    return rows


def _lines(run: str | PathLike[str]) -> list[tuple[int, str]]:
    """Numbers and text of the lines that are not empty, without a last one that is still being written."""
    # A newline alone ends a line: strings in JSON may hold U+2028 and others. A character may be cut short too.
    with open(run, encoding="utf-8", errors="replace", newline="\n") as file:
        lines = [(number, line) for number, line in enumerate(file, 1) if line.strip()]
    if len(lines) > 1 and _cut_short(lines[-1][1]):
        lines.pop()
    return lines


def _cut_short(line: str) -> bool:
    try:
        json.loads(line)
    except json.JSONDecodeError:
        return not line.endswith("\n")
    return False


def _row(line: str, where: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"plot: expected a JSON object on every line; got {line[:60]!r} in {where}") from error
    if not isinstance(row, dict):
        raise ValueError(f"plot: expected a JSON object on every line; got {type(row).__name__} in {where}")
    return row


def _curve(rows: list[Mapping[str, Any]], prefix: str, name: str) -> tuple[list[float], list[float]]:
    """Steps and values of one quantity, in the rows that have a finite one."""
    key = prefix + name if any(str(key).startswith(prefix) for row in rows for key in row) else name
    values = ((number, row, _number(row.get(key))) for number, row in enumerate(rows))
    points = [(_step(row, number), value) for number, row, value in values if value is not None]
    return [x for x, _ in points], [y for _, y in points]


def _step(row: Mapping[str, Any], number: int) -> float:
    """The step of a row, or its number where it has none."""
    step = row.get("step")
    return float(number) if step is None else float(step)


def _number(value: Any) -> float | None:
    """A finite number, which a 0-dim array or tensor is too; None for anything else."""
    if not isinstance(value, Real) and getattr(value, "ndim", None) != 0:
        return None
    try:
        number = float(value)
    except (ArithmeticError, RuntimeError, TypeError, ValueError):  # too large; complex; text
        return None
    return number if math.isfinite(number) else None


def _draw(axes: Any, panel: Panel, curves: Mapping[str, tuple[list[float], list[float]]]) -> None:
    drawn = [name for name in panel.names if curves[name][0]]
    for name, color in zip(drawn, COLORS, strict=False):
        axes.plot(*curves[name], color=color, marker=".", markersize=3, linewidth=1, label=name)
    axes.set(ylabel=panel.label, yscale=panel.scale)
    if panel.names == ("displacement_cosine",):  # 1 but for rounding: without limits the noise would fill the panel
        axes.set_ylim(min(0.9, *curves["displacement_cosine"][1]) - 0.02, 1.02)
    axes.grid(alpha=0.25)
    if len(panel.names) > 1:
        axes.legend(frameon=False)
