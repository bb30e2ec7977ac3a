"""Equal time: how many further steps plain training gets for what another arm costs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def cost_factor(plain: Sequence[float], other: Sequence[float]) -> float:
    """The median over the steps of (seconds of the other arm's step / seconds of the plain step beside it)."""
    return statistics.median(b / a for a, b in zip(plain, other, strict=False))


def extra_steps(steps: int, factor: float) -> int:
    """How many more plain steps fit into the time of `steps` steps that cost `factor` times as much, rounded."""
    return max(0, round(steps * (factor - 1)))
