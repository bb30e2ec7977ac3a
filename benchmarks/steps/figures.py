"""Four figures, each as PNG and SVG: cost, memory, scaling in n, kernels against the memory's bandwidth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from benchmarks.record import Row
from benchmarks.steps.table import Line, lines
from gradalign.cli import places

COLORS = {"plain": "#9aa5b1", "gradalign": "#d9572b", "same term": "#3b6ea8", "other": "#7a9a5b"}
FAMILIES = {
    "plain": "plain AdamW",
    "gradalign": "gradalign",
    "same term": "the same term, other ways",
    "other": "other aims",
}
STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.25,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "legend.frameon": False,
    "font.size": 9.5,
    "svg.hashsalt": "gradalign",
}


def save(result: Row, out: Path) -> list[str]:
    """Writes `<suite>-cost`, `-memory`, `-scaling` and `-kernels`; returns the names of the files."""
    names = []
    for name, draw in FIGURES.items():
        with plt.rc_context(STYLE):
            figure, axes = plt.subplots(figsize=(8.5, 5.2), layout="constrained")
            draw(axes, result)
            for kind, metadata in (("png", {}), ("svg", {"Date": None})):
                names.append(f"{result['suite']}-{name}.{kind}")
                with places.whole_file(out / names[-1]) as part:
                    figure.savefig(part, dpi=150, metadata=metadata)
            plt.close(figure)
    return names


def cost(axes: Axes, result: Row) -> None:
    """Time over plain's, with quartiles, and where passes alone would put it."""
    shown = sorted(_measured(result), key=lambda line: -line.row["ratio"])
    for y, line in enumerate(shown):
        low, high = line.row["ratio_quartiles"]
        middle = line.row["ratio"]
        whiskers = [[middle - low], [high - middle]]
        axes.barh(y, middle, color=COLORS[line.family], xerr=whiskers, error_kw={"linewidth": 1})
        axes.plot([line.pass_factor] * 2, [y - 0.4, y + 0.4], color="black", linewidth=1.5)
        axes.text(high, y, f" {middle:.2f}", va="center")
    axes.set_yticks(range(len(shown)), [line.name for line in shown])
    axes.axvline(1, color="black", linewidth=0.8, linestyle="--")
    axes.set(title=f"Time of a step: {result['headline']}", xlabel="times plain AdamW (black stroke: passes / k)")
    _family_legend(axes, shown)


def memory(axes: Axes, result: Row) -> None:
    """Peak memory above plain, in copies of the parameters."""
    shown = [line for line in _measured(result) if line.extra_copies is not None and line.name != "plain"]
    shown.sort(key=lambda line: -(line.extra_copies or 0))
    for y, line in enumerate(shown):
        copies, extra = line.extra_copies or 0.0, line.extra_bytes or 0
        axes.barh(y, copies, color=COLORS[line.family])
        axes.text(max(copies, 0), y, f" {copies:.1f} ({extra / 1e6:.0f} MB)", va="center")
    axes.set_yticks(range(len(shown)), [line.name for line in shown])
    axes.set(title=f"Peak memory above plain: {result['headline']}", xlabel="copies of the parameters")
    axes.margins(x=0.15)
    _family_legend(axes, shown)


def scaling(axes: Axes, result: Row) -> None:
    """Time over plain's against n, for the MLPs; a cross where a method ran out of memory or time."""
    names = list(dict.fromkeys(row["workload"]["name"] for row in result["rows"] if row["workload"]["model"] == "mlp"))
    curves: dict[str, list[Line]] = {}
    for name in names:
        for line in lines(result["rows"], name):
            curves.setdefault(line.name, []).append(line)
    for name, points in curves.items():
        _curve(axes, name, points)
    axes.set(xscale="log", yscale="log", title="MLPs of n parameters, k = 8", xlabel="n", ylabel="time / plain AdamW")
    if curves:
        axes.legend()


def _curve(axes: Axes, name: str, points: Sequence[Line]) -> None:
    measured = sorted((line for line in points if line.ok), key=lambda line: line.row["parameters"])
    ratios = [line.row["ratio"] for line in measured]
    drawn = axes.plot([line.row["parameters"] for line in measured], ratios, marker="o", label=name)
    for line in (line for line in points if not line.ok):
        at = (line.row["workload"]["size"], ratios[-1] if ratios else 1.0)
        axes.plot(*at, "x", color=drawn[0].get_color(), markersize=10, markeredgewidth=2)
        axes.annotate(_short(line.row["reason"]), at, fontsize=8, xytext=(6, 6), textcoords="offset points")


def kernels(axes: Axes, result: Row) -> None:
    """Bandwidth of every op within real steps over that of `y += a x` on as many elements."""
    points: dict[str, list[tuple[float, float]]] = {}
    for row in result["rows"]:
        for op, use in (row.get("kernels") or {}).items():
            if row["method"] in ROOFLINE and use["seconds"] > 0:
                reached = use["bytes"] / use["seconds"] / row["bandwidth"]
                points.setdefault(op, []).append((use["bytes"] / use["calls"], reached))
    for op, found in sorted(points.items()):
        axes.plot(*zip(*sorted(found), strict=True), marker="o", linestyle="", label=op)
    axes.axhline(1, color="black", linewidth=0.8, linestyle="--")
    axes.set(
        xscale="log",
        title="gradalign's kernels within a step",
        xlabel="bytes of a call",
        ylabel="bandwidth / that of y += a x in the same process",
    )
    axes.set_ylim(bottom=0)
    if points:
        axes.legend()


FIGURES: dict[str, Callable[[Axes, Row], None]] = {
    "cost": cost,
    "memory": memory,
    "scaling": scaling,
    "kernels": kernels,
}
ROOFLINE = ("split m=k/4", "prefix")


def _measured(result: Row) -> list[Line]:
    return [line for line in lines(result["rows"], result["headline"]) if line.ok]


def _family_legend(axes: Axes, shown: Sequence[Line]) -> None:
    there = {line.family for line in shown}
    handles = [plt.Rectangle((0, 0), 1, 1, color=COLORS[f]) for f in FAMILIES if f in there]
    if handles:
        axes.legend(handles, [FAMILIES[f] for f in FAMILIES if f in there], loc="upper right")


def _short(reason: str) -> str:
    return (
        "out of memory" if reason.startswith("out of memory") else "too long" if "took longer" in reason else "failed"
    )
