"""What `tune` measured, as data, as text and as a plot."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any

from gradalign.tuning.curve import DIFFERENCES, TOLERANCE, Point, is_usable, smallest_error
from gradalign.tuning.plot import save_plot
from gradalign.tuning.table import align_columns, percent

LARGE_SHARE = 0.5  # a term above this share of the gradient is remarked on
LOW_SHARE = 0.2  # what is proposed instead


@dataclass(frozen=True)
class StartingWeight:
    """The weight to start from with one objective and normalize="direction", without labelled sources (docs/weight.md).

    Attributes:
        value: the weight [length in parameter space].
        term_size: norm of weight * term over the norm of the mean gradient, at the current parameters; nan where it is not
            known: the mean gradient is 0, or neither a radius of the sweep nor the default one has an error of at most 50%.
        trial: what it did to the accuracy of another model, in points: with clean labels; with 30% wrong ones (docs/weight.md).
    """

    value: float
    term_size: float
    trial: str


@dataclass(frozen=True)
class TuningResult:
    """The error of the finite difference over the radius, and what follows from it.

    Attributes:
        curve: one point per radius, ascending.
        radius: the recommended one for "forward" and "central": the largest up to which the error stays below 1.5 times
            the smallest one, or 5% where that is more. Above the best radius the error is the truncation error, which changes
            slowly in training; below it rounding error, which grows as gradients shrink.
        default_radius: the radius of `GradAlign` with radius=None.
        reference: how the Hessian-vector product was computed, "double_backward" or "richardson".
        uncertainty: relative error of a Richardson extrapolation; measured errors below it are not meaningful. None for double
            backward.
        reason: why double backward was not used; None where it was, or was not asked for.
        weights: by objective; for a try without labelled sources, where plain training was best.
        dtypes: names of the displaced parameters' dtypes.
        masters: whether the optimizer's float32 masters were displaced.
        autocast: whether the model ran under autocast.
        numel: number of displaced scalars.
        num_probes: number of micro-batches whose Hessian-vector products were measured.
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

        Args:
            radius: exactly as it stands in `curve` [parameter].

        Returns:
            What was measured there.

        Raises:
            ValueError: the sweep does not contain this radius.
        """
        for point in self.curve:
            if point.radius == radius:
                return point
        raise ValueError(f"radius: expected one of {[p.radius for p in self.curve]}; got {radius}")

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON.

        Returns:
            name -> value for every attribute; points and weights are dictionaries themselves.
        """
        return asdict(self)

    def table(self) -> str:
        """The curve as text.

        Returns:
            A line of headings, and one for each radius.
        """
        return align_columns(
            [("radius", "forward", "central", "cosine", "length", "moved", ""), *map(self._row, self.curve)]
        )

    def __str__(self) -> str:
        parts = (self._heading(), [self.table()], self._radius_lines(), self._weight_lines())
        return "\n\n".join("\n".join(lines) for lines in parts)

    def plot(self, path: str | PathLike[str]) -> None:
        """Plot both errors over the radius, with the displacement below.

        Args:
            path: where the picture goes; its ending says the format.

        Raises:
            ImportError: matplotlib is not installed.
        """
        method = self.reference.replace("_", " ")
        title = f"Finite difference against {method}, {' and '.join(self.dtypes)}" + (", autocast" * self.autocast)
        save_plot(path, self.curve, self.radius, self.uncertainty, title)

    def _row(self, point: Point) -> tuple[str, ...]:
        recommended_for = [
            name for name in DIFFERENCES if self.radius[name] == point.radius and is_usable(getattr(point, name))
        ]
        return (
            f"{point.radius:.4g}",
            percent(point.forward),
            percent(point.central),
            f"{point.displacement_cosine:.3f}",
            percent(point.displacement_length),
            percent(point.moved),
            f"<- {', '.join(recommended_for)}" if recommended_for else "",
        )

    def _heading(self) -> list[str]:
        kind = " and ".join(self.dtypes) + (" with fp32 masters" if self.masters else "")
        kind += ", autocast" if self.autocast else ""
        method = {"double_backward": "double backward", "richardson": "a Richardson extrapolation"}[self.reference]
        lines = [f"Error of the finite difference against {method}: {self.numel:,} parameters, {kind}"]
        if self.uncertainty is not None:
            accuracy = percent(self.uncertainty)
            lines.append(f"The extrapolation is accurate to about {accuracy}; smaller errors are not meaningful.")
        if self.reason is not None:
            lines.append(f"Double backward was not used: {self.reason}")
        return lines

    def _radius_lines(self) -> list[str]:
        lines = []
        for name, radius in self.radius.items():
            error = getattr(self.at(radius), name)
            lines.append(f"radius={radius:.4g} for {name} differences (error {percent(error)})")
            if not is_usable(error):
                lines.append("  no radius of the sweep is good; try others (radii=...), or float32 parameters")
            elif error > TOLERANCE and smallest_error(self.curve, name) in (self.curve[0], self.curve[-1]):
                lines.append("  the smallest error is at an end of the sweep; others may be better (radii=...)")
        return [*lines, f"GradAlign's default here is {self.default_radius:g}."]

    def _weight_lines(self) -> list[str]:
        rows = [("objective", "weight", "term / gradient", "BERT-tiny")]
        for name, weight in self.weights.items():
            size = "not known" if math.isnan(weight.term_size) else percent(weight.term_size)
            rows.append((name, f"{weight.value:g}", size, weight.trial))
        return [
            "Weights to start from. Where each micro-batch comes from one labelled source with shortcuts of its own: 1 with",
            'variance; with a hidden layer 0.3 with cosine, normalize="none" and the first layer alone (params=). Elsewhere',
            'plain training was best; these are for a try there (normalize="direction", with warm-up), with what they did to',
            "the accuracy of a BERT-tiny, in points, with clean labels; with 30% wrong ones (docs/weight.md):",
            align_columns(rows),
            *self._large_terms(),
        ]

    def _large_terms(self) -> list[str]:
        """One sentence on the weights whose term is large."""
        lower = [
            f"{LOW_SHARE * weight.value / weight.term_size:.1g} for {name}"
            for name, weight in self.weights.items()
            if weight.term_size > LARGE_SHARE
        ]
        if not lower:
            return []
        return [
            "A term about as large as the gradient, or larger, dominates the step: begin lower, with a term of about "
            f"{percent(LOW_SHARE)},",
            f"for example with weight {', '.join(lower)}.",
        ]
