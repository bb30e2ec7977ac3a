"""The plot of a run: training loss, accuracy over time, alignment, and the time of a step."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from gradalign.cli.demo.figure import figure, mean_curve, num_seeds
from gradalign.cli.demo.reviews.record import ARMS
from gradalign.cli.demo.reviews.report import title

COLORS = {"before": "#9aa5b1", "adamw": "#3b6ea8", "gradalign": "#d9572b"}
LABELS = {"before": "before", "adamw": "AdamW", "gradalign": "gradalign"}


def save_plot(record: dict[str, Any], path: Path) -> None:
    """Writes the four panels to a PNG file."""
    words = f"{title(record['settings'])}, {num_seeds(record['summary']['num_seeds'])}"
    with figure(path, words, (10.5, 7.2), 2, 2) as ((loss, accuracy), (alignment, cost)):
        _loss_panel(loss, record)
        _accuracy_panel(accuracy, record)
        _alignment_panel(alignment, record)
        _cost_panel(cost, record)


def _loss_panel(axes: Axes, record: dict[str, Any]) -> None:
    steps = record["summary"]["steps"]
    for arm in ARMS:
        smooth = [running_mean(s[arm]["losses"][:steps]) for s in record["seeds"]]
        for curve in smooth:
            axes.plot(range(1, steps + 1), curve, color=COLORS[arm], alpha=0.25, linewidth=0.8)
        mean = [statistics.fmean(values) for values in zip(*smooth, strict=True)]
        axes.plot(range(1, steps + 1), mean, color=COLORS[arm], linewidth=2, label=LABELS[arm])
    axes.set(title="Training loss", xlabel="optimizer step", ylabel="cross-entropy, running mean of 10 steps")
    axes.legend()


def _accuracy_panel(axes: Axes, record: dict[str, Any]) -> None:
    per_step, steps = record["summary"]["seconds_per_step"], record["summary"]["steps"]
    for arm in ARMS:
        curves = [
            [(step * per_step[arm], 100 * accuracy) for step, accuracy in s[arm]["accuracies"]] for s in record["seeds"]
        ]
        for curve in curves:
            axes.plot(*zip(*curve, strict=True), color=COLORS[arm], alpha=0.25, linewidth=0.8, marker=".")
        mean = mean_curve(curves)
        shared = sum(step <= steps for step, _ in record["seeds"][0][arm]["accuracies"])
        style: dict[str, Any] = {"color": COLORS[arm], "linewidth": 2, "marker": "o"}
        if len(mean) > shared:
            axes.plot(*zip(*mean[shared - 1 :], strict=True), linestyle=":", markerfacecolor="white", **style)
        axes.plot(*zip(*mean[:shared], strict=True), label=LABELS[arm], **style)
    axes.set_xlim(left=0)
    axes.set(title="Test accuracy over time", xlabel="seconds of training (median step time x steps)", ylabel="%")
    axes.legend(title="dotted: AdamW's further steps", loc="lower right")


def _alignment_panel(axes: Axes, record: dict[str, Any]) -> None:
    names = ("before", *ARMS)
    for x, name in enumerate(names):
        values = [
            (s["alignment_before"] if name == "before" else s[name]["alignment"])["cosine"] for s in record["seeds"]
        ]
        axes.bar(x, statistics.fmean(values), width=0.6, color=COLORS[name], alpha=0.85)
        axes.plot([x] * len(values), values, "o", color="black", markersize=3.5, alpha=0.6)
    axes.set_xticks(range(len(names)), ["before training", "after AdamW", "after gradalign"])
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(title="Alignment of held-out gradients", ylabel="mean pairwise cosine (dots: seeds)")


def _cost_panel(axes: Axes, record: dict[str, Any]) -> None:
    steps, factor = record["summary"]["steps"], record["summary"]["cost_factor"]
    for arm in ARMS:
        milliseconds = [1000 * t for s in record["seeds"] for t in s[arm]["seconds"][:steps]]
        axes.ecdf(milliseconds, color=COLORS[arm], linewidth=2, label=LABELS[arm])
        axes.axvline(statistics.median(milliseconds), color=COLORS[arm], linewidth=0.8, linestyle="--")
    everything = sorted(1000 * t for s in record["seeds"] for arm in ARMS for t in s[arm]["seconds"][:steps])
    axes.set_xlim(0.9 * everything[0], 1.1 * everything[int(0.98 * (len(everything) - 1))])
    axes.set(
        title=f"Time of a step: {factor:.2f} times AdamW's",
        xlabel="milliseconds (dashed: median)",
        ylabel="fraction of the steps",
    )
    axes.legend(loc="lower right")


def running_mean(values: Sequence[float], window: int = 10) -> list[float]:
    """The mean of each value and of up to window - 1 values before it."""
    return [statistics.fmean(values[max(0, i + 1 - window) : i + 1]) for i in range(len(values))]
