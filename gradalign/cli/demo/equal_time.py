"""Equal time: how many further steps plain training gets for what another arm costs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def cost_factor(plain: Sequence[float], other: Sequence[float]) -> float:
    """The median over the steps of (seconds of the other arm's step / seconds of the plain step beside it).

    Where the clock is too coarse for that and a plain step takes 0 s, the quotient of the sums; 1 where even their sum is 0.
    """
    pairs = list(zip(plain, other, strict=False))
    if all(a > 0 for a, _ in pairs):
        return statistics.median(b / a for a, b in pairs)
    total = sum(a for a, _ in pairs)
    return sum(b for _, b in pairs) / total if total > 0 else 1.0


def extra_steps(steps: int, factor: float) -> int:
    """How many more plain steps fit into the time of `steps` steps that cost `factor` times as much, rounded."""
    return max(0, round(steps * (factor - 1)))
