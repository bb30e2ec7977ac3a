"""Intervals and conclusions in words. Text is ASCII, which every terminal can show."""

from __future__ import annotations

import math

from gradalign.cli.demo.paired import MIN_SEEDS, Interval

NOT_FINITE = "not finite"


def shown(value: Interval, digits: int, unit: str, sign: str = "") -> str:
    """The interval, as in "62.0% +/- 2.5", or the mean alone where there is no half-width; a fraction where the unit is "%"."""
    if not math.isfinite(value.mean):
        return NOT_FINITE
    scale = 100 if unit == "%" else 1
    mean = f"{scale * value.mean:{sign}.{digits}f}{unit}"
    return mean if value.half_width is None else f"{mean} +/- {scale * value.half_width:.{digits}f}"


def verdict(compared: str, difference: Interval, num_seeds: int) -> str:
    """What the paired differences of `num_seeds` seeds show, and no more.

    Args:
        compared: the difference in words, "At equal steps: gradalign minus AdamW".
        difference: in percentage points.
        num_seeds: that it was measured on.
    """
    if not difference.excludes_zero:
        return f"{short_verdict(compared, difference, num_seeds)}."
    return (
        f"{short_verdict(compared, difference, num_seeds)}, which without a difference happens by chance in one of 20 runs; "
        "repeat it with other seeds (--first-seed) before you rely on it."
    )


def short_verdict(compared: str, difference: Interval, num_seeds: int) -> str:
    """`verdict` without what an interval that excludes 0 means, for several of them side by side."""
    if not math.isfinite(difference.mean):
        return f"{compared} is not finite: a training diverged"
    measured = f"{compared} = {difference.mean:+.2f} points"
    if difference.half_width is None:
        seeds = "one seed" if num_seeds == 1 else f"{num_seeds} seeds"
        return f"{measured} on {seeds}, which cannot show a difference; --seeds {MIN_SEEDS} or more give an interval"
    low, high = difference.mean - difference.half_width, difference.mean + difference.half_width
    zero = "excludes 0" if difference.excludes_zero else "includes 0, so no difference is shown"
    return f"{measured}, 95% interval {low:+.2f} to {high:+.2f} over {num_seeds} paired seeds: it {zero}"
