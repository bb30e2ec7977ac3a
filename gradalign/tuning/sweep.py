"""The radii that are measured."""

from __future__ import annotations

from collections.abc import Iterable

from gradalign.engine import validation

RADII = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
MIN_RADIUS, MAX_RADIUS = 1e-18, 1e18  # lengths are squared in float32, whose normal range this is


def sweep_radii(radii: Iterable[float]) -> list[float]:
    """The radii of a sweep in ascending order, without duplicates.

    Raises:
        TypeError: `radii` is not iterable, or one of them is not a number.
        ValueError: there are none, or one is outside of [MIN_RADIUS, MAX_RADIUS].
    """
    try:
        given = iter(radii)
    except TypeError as error:
        raise TypeError(
            f"radii: expected several lengths; got {type(radii).__name__}; put it in a list: radii=[{radii}]"
        ) from error
    found = sorted(
        {validation.positive("radii", radius, "a length, in the units of the parameters") for radius in given}
    )
    if not found:
        raise ValueError("radii: expected at least one; got none")
    for radius in found:
        if not MIN_RADIUS <= radius <= MAX_RADIUS:
            raise ValueError(
                f"radii: expected lengths from {MIN_RADIUS:g} to {MAX_RADIUS:g}, in the units of the parameters; got "
                f"{radius:g}; lengths from {RADII[0]:g} to {RADII[-1]:g} are usual"
            )
    return found
