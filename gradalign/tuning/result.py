"""What `tune` found, as data, as text and as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any

DIFFERENCES = ("forward", "central")
TOLERANCE = 0.05  # an error that no gain in the estimate would pay for: its sampling error is many times as large
MARGIN = 1.5  # to the right of the minimum, the side where errors keep still


@dataclass(frozen=True)
class Point:
    """One radius of the sweep.

    Attributes:
        radius: length of the displacement asked for [parameter].
        forward: relative error of the forward difference, ||estimate - reference|| / ||reference||.
        central: that of the central difference.
        displacement_cosine: cosine between the displacement asked for and the one the parameters' dtype could represent.
        displacement_length: length of the one represented over the length asked for.
        moved: share of the displaced elements that changed at all.
    """

    radius: float
    forward: float
    central: float
    displacement_cosine: float
    displacement_length: float
    moved: float


@dataclass(frozen=True)
class StartingWeight:
    """Where to start with an objective, normalize="direction".

    Attributes:
        value: the weight [length in parameter space].
        term_size: norm of weight * term over the norm of the mean gradient, at these parameters.
        tested: whether the value is from a trial, or by analogy.
    """

    value: float
    term_size: float
    tested: bool


@dataclass(frozen=True)
class TuningResult:
    """The error of the finite difference over the radius, and what follows from it.

    Attributes:
        curve: a point for each radius, ascending.
        radius: the recommended one for "forward" and "central": the largest up to which the error stays below 1.5 times
            the smallest one, or 5% where that is more. Right of the minimum the error is the curvature's, which changes slowly;
            left of it rounding's, which grows as gradients shrink during training.
        default_radius: what `GradAlign` takes with radius=None.
        reference: what the differences were compared with, "double_backward" or "richardson".
        uncertainty: of a Richardson extrapolation: errors below it mean nothing; None for double backward.
        reason: why it was not double backward; None where it was, or was not asked for.
        weights: by objective.
        dtypes: of the displaced parameters, by name.
        masters: whether float32 masters stood behind them.
        autocast: whether the model ran under autocast.
        numel: how many scalars are displaced.
        num_probes: micro-batches whose Hessians were measured.
    """

    curve: tuple[Point, ...]
    radius: dict[str, float]
    default_radius: float
    reference: str
    uncertainty: float | None
    reason: str | None
    weights: dict[str, StartingWeight]
    dtypes: tuple[str, ...]
    masters: bool
    autocast: bool
    numel: int
    num_probes: int

    @property
    def displacement(self) -> dict[str, Point]:
        """The points of the recommended radii, by difference."""
        return {name: self.at(radius) for name, radius in self.radius.items()}

    def at(self, radius: float) -> Point:
        """The point of a radius of the sweep.

        Raises:
            ValueError: one that was not in it.
        """
        for point in self.curve:
            if point.radius == radius:
                return point
        raise ValueError(f"radius: expected one of {[p.radius for p in self.curve]}; got {radius}")

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        return asdict(self)

    def table(self) -> str:
        """The curve, one line a radius."""
        rows = [("radius", "forward", "central", "cosine", "length", "moved", "")]
        for point in self.curve:
            marks = [name for name in DIFFERENCES if self.radius[name] == point.radius]
            rows.append(
                (
                    f"{point.radius:.4g}",
                    percent(point.forward),
                    percent(point.central),
                    f"{point.displacement_cosine:.3f}",
                    percent(point.displacement_length),
                    percent(point.moved),
                    f"<- {', '.join(marks)}" if marks else "",
                )
            )
        return aligned(rows)

    def __str__(self) -> str:
        return "\n".join((*self._heading(), "", self.table(), "", *self._radii(), "", *self._weights()))

    def plot(self, path: str | PathLike[str]) -> None:
        """Write the V: both errors over the radius, with the displacement below.

        Raises:
            ImportError: matplotlib is not installed.
        """
        from gradalign.tuning.plot import save_plot  # matplotlib is optional

        save_plot(self, path)

    def _heading(self) -> list[str]:
        kind = " and ".join(self.dtypes) + (" with fp32 masters" if self.masters else "")
        kind += ", autocast" if self.autocast else ""
        method = {"double_backward": "double backward", "richardson": "a Richardson extrapolation"}[self.reference]
        lines = [f"Error of the finite difference against {method}: {self.numel:,} parameters, {kind}"]
        if self.uncertainty is not None:
            lines.append(
                f"The extrapolation is good to about {percent(self.uncertainty)}; smaller errors mean nothing."
            )
        if self.reason is not None:
            lines.append(f"No double backward: {self.reason}")
        return lines

    def _radii(self) -> list[str]:
        lines = []
        for name, radius in self.radius.items():
            point = self.at(radius)
            lines.append(f"radius={radius:.4g} for {name} differences (error {percent(getattr(point, name))})")
            if getattr(point, name) > 0.5:
                lines.append("  no radius of the sweep is good; try others (radii=...), or float32 parameters")
            elif getattr(point, name) > TOLERANCE and smallest(self.curve, name) in (self.curve[0], self.curve[-1]):
                lines.append("  the smallest error is at an end of the sweep; others may be better (radii=...)")
        return [*lines, f"GradAlign's default here is {self.default_radius:g}."]

    def _weights(self) -> list[str]:
        rows = [("objective", "weight", "term / gradient", "")]
        for name, weight in self.weights.items():
            rows.append(
                (name, f"{weight.value:g}", percent(weight.term_size), "" if weight.tested else "untested, by analogy")
            )
        return ['Weights to start from (normalize="direction", with warm-up):', aligned(rows)]


def recommended(curve: Sequence[Point], difference: str) -> float:
    """From the smallest error on, the largest radius before the first whose error is above 1.5 times that, and above 5%."""
    best = smallest(curve, difference)
    most = max(MARGIN * getattr(best, difference), TOLERANCE)
    radius = best.radius
    for point in curve[curve.index(best) :]:
        if not getattr(point, difference) <= most:
            break
        radius = point.radius
    return radius


def smallest(curve: Sequence[Point], difference: str) -> Point:
    """The point with the smallest error."""
    return min(curve, key=lambda point: (not getattr(point, difference) >= 0, getattr(point, difference)))


def percent(share: float) -> str:
    """Two digits, as 0.013%."""
    return f"{100 * share:.2g}%" if share < 0.995 else f"{100 * share:.0f}%"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns of equal width, the first to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:-1], widths[1:-1], strict=True)), row[-1]]
        for row in rows
    )
    return "\n".join("  ".join(line).rstrip() for line in lines)
