"""What a few paired seeds can say: the mean of the differences and Student's t-interval around it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

LEAST_SEEDS = 3  # below, no interval: of two seeds it would be 13 times as wide as their difference


class Interval(NamedTuple):
    """A mean and the half-width of its 95% interval, None where there are too few values for one."""

    mean: float
    half_width: float | None

    @property
    def excludes_zero(self) -> bool:
        """Whether the values show a difference at all."""
        return self.half_width is not None and abs(self.mean) > self.half_width


def interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """mean +- t_{level, n-1} s / sqrt(n), s the sample standard deviation (Student 1908).

    Args:
        values: of n seeds; for a comparison, the differences between the arms of each seed.
        level: coverage under a normal distribution of the values.

    Returns:
        The interval, without a half-width for n < `LEAST_SEEDS`.
    """
    n = len(values)
    mean = statistics.fmean(values)
    if n < LEAST_SEEDS:
        return Interval(mean, None)
    return Interval(mean, t_quantile(level, n - 1) * statistics.stdev(values) / math.sqrt(n))


def t_quantile(level: float, degrees: int) -> float:
    """The t with P(|T| < t) = level for Student's T with `degrees` degrees of freedom.

    With t = sqrt(degrees) tan(phi), P(|T| < t) is the integral of cos^(degrees - 1) from 0 to phi over that from 0 to pi/2;
    phi is found by bisection.
    """
    whole = _cosine_integral(math.pi / 2, degrees - 1)
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        if _cosine_integral(middle, degrees - 1) < level * whole:
            low = middle
        else:
            high = middle
    return math.sqrt(degrees) * math.tan(low)


def _cosine_integral(phi: float, power: int) -> float:
    """The integral of cos^power from 0 to phi, by the reduction formula I_p = (cos^(p-1) sin + (p-1) I_(p-2)) / p."""
    if power == 0:
        return phi
    if power == 1:
        return math.sin(phi)
    return (math.cos(phi) ** (power - 1) * math.sin(phi) + (power - 1) * _cosine_integral(phi, power - 2)) / power
