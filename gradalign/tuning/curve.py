"""The measured error over the radius, and the radius to take from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

DIFFERENCES = ("forward", "central")
TOLERANCE = 0.05  # errors below this do not matter: the sampling error of the estimate is many times as large
USABLE = 0.5  # above this a difference has little to do with H v
MARGIN = 1.5  # a larger radius may have this many times the smallest error: there it changes slowly in training


@dataclass(frozen=True)
class Point:
    """One radius of the sweep.

    Attributes:
        radius: requested length of the displacement [parameter].
        forward: relative error of the forward difference, ||estimate - reference|| / ||reference||.
        central: relative error of the central difference.
        displacement_cosine: cosine between the requested displacement and the one that the parameters' dtype can represent.
        displacement_length: length of the represented displacement over the requested length.
        moved: fraction of the displaced elements that changed at all.
    """

    radius: float
    forward: float
    central: float
    displacement_cosine: float
    displacement_length: float
    moved: float


def is_usable(error: float) -> bool:
    """Whether an error is at most 50%; nan is not."""
    return error <= USABLE


def recommended_radius(curve: Sequence[Point], difference: str) -> float:
    """The largest radius up to which, from the smallest error on, all errors are at most 1.5 times that error, or 5%."""
    best = smallest_error(curve, difference)
    bound = max(MARGIN * getattr(best, difference), TOLERANCE)
    radius = best.radius
    for point in curve[curve.index(best) :]:
        if not getattr(point, difference) <= bound:  # nan too ends the range
            break
        radius = point.radius
    return radius


def smallest_error(curve: Sequence[Point], difference: str) -> Point:
    """The point with the smallest error; nan counts as the largest."""
    return min(curve, key=lambda point: (not getattr(point, difference) >= 0, getattr(point, difference)))
