"""The plot of a sweep: both errors over the radius, and below it how much of the displacement the dtype can represent."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

from gradalign.engine import validation
from gradalign.tuning.curve import DIFFERENCES, Point

COLORS = {"forward": "#3b6ea8", "central": "#d9572b"}
GREY = "#9aa5b1"


def save_plot(
    path: str | PathLike[str],
    curve: Sequence[Point],
    radius: Mapping[str, float],
    uncertainty: float | None,
    title: str,
) -> None:
    """Write the plot to a file; the suffix selects the format.

    Args:
        path: of the file.
        curve: the points, ascending by radius.
        radius: the recommended radius of each difference.
        uncertainty: of the reference, drawn as a band; None for none.
        title: above the plot.

    Raises:
        ImportError: matplotlib is not installed.
    """
    figure = validation.figure_class("plot")(figsize=(7, 6), layout="constrained")
    errors, displacement = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    _plot_errors(errors, curve, radius)
    if uncertainty:
        errors.axhspan(0, uncertainty, color=GREY, alpha=0.25, label="uncertainty of the extrapolation")
    drawn = (getattr(point, name) for point in curve for name in DIFFERENCES)
    yscale = "log" if any(0 < error < math.inf for error in drawn) else "linear"  # matplotlib refuses an empty log axis
    errors.set(xscale="log", yscale=yscale, ylabel="relative error of H v", title=title)
    _plot_displacement(displacement, curve)
    for axes in (errors, displacement):
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def _plot_errors(axes: Any, curve: Sequence[Point], radius: Mapping[str, float]) -> None:
    for name in DIFFERENCES:
        errors = [getattr(point, name) for point in curve]
        label = f"{name}: radius={radius[name]:.3g}"
        axes.plot([p.radius for p in curve], errors, marker="o", color=COLORS[name], label=label)
        axes.axvline(radius[name], color=COLORS[name], linestyle=":", linewidth=1)


def _plot_displacement(axes: Any, curve: Sequence[Point]) -> None:
    radii = [point.radius for point in curve]
    axes.plot(radii, [p.displacement_cosine for p in curve], marker="o", color="black", label="cosine")
    axes.plot(radii, [p.moved for p in curve], marker=".", color=GREY, label="fraction of elements moved")
    axes.set(xlabel="radius [length in parameter space]", ylabel="displacement", ylim=(-0.05, 1.05))
