"""The Hessian-vector product extrapolated from central differences."""

from __future__ import annotations

import math
from collections.abc import Iterable

from gradalign.engine.space import Vector
from gradalign.tuning.differences import Differences, wide_zeros


def extrapolate(differences: Differences, radii: Iterable[float]) -> tuple[Vector, float]:
    """The extrapolation from neighbouring radii s < r that is closest to the one before it, and that relative distance.

        E(r, s) = [r^2 C(s) - s^2 C(r)] / (r^2 - s^2),      C(r) = H x^ + c r^2 + O(r^4) the central difference

    (Richardson 1911). Starting from the largest radius, the distance between successive extrapolations falls with the
    truncation error, of order r^2 s^2, until rounding error dominates. The smallest distance bounds what is left of both.
    One of 0 tells nothing: nothing moved, or the model is constant at both ends. Where there is no other the distance is
    infinite. Radii without differences are left out.
    """
    space = differences.step.space
    previous, best, uncertainty = None, wide_zeros(space), math.inf
    r, larger = math.inf, None
    for s in sorted(radii, reverse=True):
        smaller = _central(differences, s)
        if smaller is None:
            continue
        if larger is not None:
            extrapolated = wide_zeros(space)
            a, b = (space.scalar(x / (r**2 - s**2)) for x in (r**2, -(s**2)))
            space.combine(extrapolated, smaller, larger, a, b)
            if previous is not None:
                distance = differences.relative_error(extrapolated, previous)
                if distance < uncertainty and differences.norm(extrapolated) > 0:
                    best, uncertainty = extrapolated, distance
            previous = extrapolated
        r, larger = s, smaller
    return best, uncertainty


def _central(differences: Differences, radius: float) -> Vector | None:
    gradients = differences.gradients_if_any(radius)
    return None if gradients is None else differences.central(gradients)


def check_uncertainty(uncertainty: float) -> None:
    """There is an extrapolation.

    Raises:
        ValueError: its uncertainty is infinite.
    """
    if not math.isfinite(uncertainty):
        raise ValueError(
            "tune: expected finite differences other than 0 at three neighbouring radii, for a Richardson extrapolation; got "
            "none, at the default radii either; pass shorter radii where displaced losses are not finite, longer ones where "
            "no parameter moves"
        )
