"""What the plots of all tasks share: their look, how they are written, and mean curves."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt

from gradalign.cli import places

STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "legend.frameon": False,
    "font.size": 9.5,
}


@contextmanager
def figure(path: Path, title: str, size: tuple[float, float], rows: int, columns: int) -> Iterator[Any]:
    """Yields an array of axes, and writes what was drawn to a PNG file. The title is text even where it has dollar signs."""
    with plt.rc_context(STYLE):
        drawn, axes = plt.subplots(rows, columns, figsize=size, layout="constrained")
        drawn.suptitle(title, fontsize=12, parse_math=False)
        yield axes
        with places.whole_file(path) as part:
            drawn.savefig(part, dpi=150)
        plt.close(drawn)


def mean_curve(curves: Sequence[Sequence[tuple[float, float]]]) -> list[tuple[float, float]]:
    """The mean point of each position; a shorter curve is extended by its last point."""
    longest = max(map(len, curves))
    padded = [[*curve, *[curve[-1]] * (longest - len(curve))] for curve in curves]
    positions = zip(*padded, strict=True)
    return [(statistics.fmean(x for x, _ in points), statistics.fmean(y for _, y in points)) for points in positions]


def num_seeds(num: int) -> str:
    """In words."""
    return "one seed" if num == 1 else f"{num} seeds"
