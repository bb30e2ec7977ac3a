"""The plot of a run: accuracy on the unseen test over time, what the classifier leans on, and the paired differences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from gradalign.cli.demo.figure import figure, mean_curve, num_seeds
from gradalign.cli.demo.paired import Interval
from gradalign.cli.demo.sites.methods import LONGER, METHODS, MIXED, PLAIN
from gradalign.cli.demo.sites.record import NAMES
from gradalign.cli.demo.sites.report import BY_SITE, CONTROLS, TITLE

COLORS = {PLAIN.name: "#3b6ea8", LONGER: "#3b6ea8", "SAM": "#7a8a99", "Reptile": "#3f9c6d"} | {
    "dot": "#e3a33b",
    "variance": "#b0479b",
    "cosine": "#d9572b",
}
SHADES = ("#c3423f", "#c9c4b5", "#5b8c5a")
POINTING = ("to the wrong label", "one each", "to the right label")


def save_plot(record: dict[str, Any], path: Path) -> None:
    """Writes the three panels to a PNG file."""
    title = f"{TITLE}, {num_seeds(record['summary']['num_seeds'])}"
    with figure(path, title, (16, 5.2), 1, 3) as (accuracy, leaning, differences):
        _accuracy_panel(accuracy, record)
        _leaning_panel(leaning, record["summary"]["arms"])
        _difference_panel(differences, record["summary"]["arms"])


def _accuracy_panel(axes: Axes, record: dict[str, Any]) -> None:
    arms, longest = record["summary"]["arms"], 0.0
    for method in METHODS:
        if method.mixed:
            continue
        per_step = arms[method.name]["seconds"] / arms[method.name]["steps"]
        longest = max(longest, per_step * arms[method.name]["steps"])
        style: dict[str, Any] = {"color": COLORS[method.name], "linewidth": 2.4 if method in BY_SITE else 1.6}
        axes.plot(*_curve(record, method.name, per_step), label=method.name, **style)
        if method is PLAIN:
            axes.plot(*_curve(record, LONGER, per_step), linestyle=":", **style)
    axes.set_xlim(0, 1.02 * longest)
    axes.set(title="Accuracy on the unseen test over time", xlabel="processor seconds of training", ylabel="%")
    axes.legend(title="dotted: plain, further steps", ncols=2, loc="lower right")


def _curve(record: dict[str, Any], name: str, per_step: float) -> Any:
    curves = [[(per_step * s, 100 * a) for s, a in seed["arms"][name]["accuracies"]] for seed in record["seeds"]]
    return zip(*mean_curve(curves), strict=True)


def _leaning_panel(axes: Axes, arms: dict[str, Any]) -> None:
    names = [name for name in NAMES if name not in {m.name for m in CONTROLS} | {LONGER}]
    for i, (words, shade) in enumerate(zip(POINTING, SHADES, strict=True)):
        heights = [100 * arms[name]["by_pointing_right"][i] for name in names]
        bars = axes.bar([x + 0.27 * (i - 1) for x in range(len(names))], heights, 0.25, color=shade, label=words)
        axes.bar_label(bars, fmt="%.0f", fontsize=7.5)
    axes.set_xticks(range(len(names)), names)
    axes.axhline(50, color="black", linewidth=0.8, linestyle="--")
    axes.set(title="What it leans on: shortcut against content", ylabel="accuracy on the test, %", ylim=(0, 122))
    axes.legend(title="the two planted sentences point ...", loc="upper center", ncols=3, columnspacing=1)


def _difference_panel(axes: Axes, arms: dict[str, Any]) -> None:
    names = [name for name in NAMES if name != PLAIN.name]
    for y, name in enumerate(reversed(names)):
        value = Interval(**arms[name]["minus_plain"])
        color = COLORS[name.removesuffix(MIXED)]
        axes.errorbar(value.mean, y, xerr=value.half_width, fmt="o", color=color, capsize=4, linewidth=2)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(names)), reversed(names))
    axes.set(title="Test accuracy minus plain training's", xlabel="points, paired, with 95% interval")
