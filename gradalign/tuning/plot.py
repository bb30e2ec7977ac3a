"""The plot of a tuning: the V of the errors, and what the dtype makes of the displacement."""

from __future__ import annotations

from os import PathLike
from typing import Any

from gradalign.engine import validation
from gradalign.tuning.result import DIFFERENCES, TuningResult

COLORS = {"forward": "#3b6ea8", "central": "#d9572b"}
FAINT = "#9aa5b1"


def save_plot(result: TuningResult, path: str | PathLike[str]) -> None:
    """Write the plot to a file, its format by its suffix."""
    figure = validation.figure_class("plot")(figsize=(7, 6), layout="constrained")
    errors, displacement = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    _errors(errors, result)
    _displacement(displacement, result)
    figure.savefig(path, dpi=150)


def _errors(axes: Any, result: TuningResult) -> None:
    radii = [point.radius for point in result.curve]
    for name in DIFFERENCES:
        values = [getattr(point, name) for point in result.curve]
        axes.plot(radii, values, marker="o", color=COLORS[name], label=f"{name}: radius={result.radius[name]:.3g}")
        axes.axvline(result.radius[name], color=COLORS[name], linestyle=":", linewidth=1)
    if result.uncertainty:
        axes.axhspan(0, result.uncertainty, color=FAINT, alpha=0.25, label="uncertainty of the extrapolation")
    axes.set(xscale="log", yscale="log", ylabel="relative error of H v", title=_title(result))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)


def _displacement(axes: Any, result: TuningResult) -> None:
    radii = [point.radius for point in result.curve]
    axes.plot(radii, [p.displacement_cosine for p in result.curve], marker="o", color="black", label="cosine")
    axes.plot(radii, [p.moved for p in result.curve], marker=".", color=FAINT, label="share of elements moved")
    axes.set(xlabel="radius [length in parameter space]", ylabel="displacement", ylim=(-0.05, 1.05))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)


def _title(result: TuningResult) -> str:
    method = result.reference.replace("_", " ")
    return f"Finite difference against {method}, {' and '.join(result.dtypes)}" + (", autocast" * result.autocast)
