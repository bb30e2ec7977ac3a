"""Student's t-interval for the mean of a few values, such as the differences of paired seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

MIN_SEEDS = 3  # for an interval: that of two seeds would be 13 times as wide as their difference


class Interval(NamedTuple):
    """A mean and the half-width of its 95% interval; the half-width is None where there are too few values.

    The mean is NaN where a value is not finite, as after a training that diverged.
    """

    mean: float
    half_width: float | None

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 is outside of the interval."""
        return self.half_width is not None and abs(self.mean) > self.half_width


def interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """mean +- t_{level, n-1} s / sqrt(n), with s the sample standard deviation (Student 1908).

    Args:
        values: one per seed, n in total; for a comparison, the differences between the two arms of each seed.
        level: coverage if the values are normally distributed.

    Returns:
        The interval, without a half-width for n < `MIN_SEEDS`; a mean of NaN alone where a value is not finite.
    """
    n = len(values)
    if not all(map(math.isfinite, values)):
        return Interval(math.nan, None)
    mean = statistics.fmean(values)
    if n < MIN_SEEDS:
        return Interval(mean, None)
    return Interval(mean, t_quantile(level, n - 1) * statistics.stdev(values) / math.sqrt(n))


def t_quantile(level: float, degrees: int) -> float:
    """The t with P(|T| < t) = level, for Student's T with `degrees` degrees of freedom.

    With t = sqrt(degrees) tan(phi), P(|T| < t) is the integral of cos^(degrees - 1) from 0 to phi divided by that from 0 to
    pi/2. Bisection finds phi.
    """
    total = _cosine_integral(math.pi / 2, degrees - 1)
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        if _cosine_integral(middle, degrees - 1) < level * total:
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
