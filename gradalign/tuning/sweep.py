"""Which radii are measured."""

from __future__ import annotations

from collections.abc import Iterable

from gradalign.engine import validation

RADII = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
LEAST, MOST = 1e-18, 1e18  # squares of lengths are divided by, in float32 too


def ascending(radii: Iterable[float]) -> list[float]:
    """The radii of a sweep, each once.

    Raises:
        TypeError: one number, or something that is none.
        ValueError: none at all, or a number that cannot be measured with.
    """
    try:
        given = iter(radii)
    except TypeError as error:
        raise TypeError(
            f"radii: expected several lengths; got {type(radii).__name__}; put it in a list: radii=[{radii}]"
        ) from error
    found = validation.sweep_radii(given)
    for radius in found:
        if not LEAST <= radius <= MOST:
            raise ValueError(
                f"radii: expected lengths from {LEAST:g} to {MOST:g}, in the units of the parameters; got {radius:g}; lengths "
                f"from {RADII[0]:g} to {RADII[-1]:g} are usual"
            )
    return found
