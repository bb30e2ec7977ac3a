"""The report of `make gpu` from its figures: which targets were met, as text and as a picture."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.kernels.step_names import CLIP_STEP, COMPOSITE, WITH_UPDATE
from benchmarks.tables import as_markdown, place

OPS = ("norm_dot", "perturb_", "restore_", "swap_", "accumulate_", "combine_", "adamw_step_", "sgd_step_", "lamb_step_")
Rows = Sequence[dict[str, Any]]


@dataclass
class Target:
    """One goal: what was measured, if it was, and what it should be at least (or, `at_most`, at most)."""

    what: str
    measured: float | None
    goal: float
    at_most: bool = False

    @property
    def met(self) -> bool:
        """Whether it was reached."""
        if self.measured is None:
            return False
        return self.measured <= self.goal if self.at_most else self.measured >= self.goal


def targets(rows: Rows) -> list[Target]:
    """Every goal on an H100, also where nothing was measured for it; none where nothing was measured at all."""
    if not rows:
        return []
    shares = {(*_workload(r), r["op"]): r["of_add"] for r in rows if r["method"] == "native"}
    found = [
        Target(f"{op} on {workload}, {dtype}: fraction of y += a x", shares.get((workload, dtype, op)), goal)
        for workload, goal in (("one tensor of 64M", 0.92), ("one tensor of 256M", 0.92), ("BERT-large", 0.90))
        for op in OPS
        for dtype in ("float32", "bfloat16")
    ]
    share = shares.get(("BERT-large", "float32", WITH_UPDATE))
    what = f"{WITH_UPDATE} on BERT-large: times its floor"
    found.append(Target(what, None if share is None else 1 / share, 1.1, at_most=True))
    found += ratios(rows, "one tensor of 64M", COMPOSITE, {"torch foreach": 1.7, "torch compiled": 1.0})
    found += ratios(rows, "BERT-large", COMPOSITE, {"torch foreach": 1.7})
    found += ratios(rows, "one tensor of 256M", CLIP_STEP, {"torch fused": 1.25})
    found += ratios(rows, "1,000 tensors", CLIP_STEP, {"torch fused": 1.5})
    return found


def ratios(rows: Rows, workload: str, op: str, goals: dict[str, float]) -> list[Target]:
    """How many times faster native is than others."""
    times = {r["method"]: r["microseconds"] for r in rows if _workload(r)[0] == workload and r["op"] == op}
    return [
        Target(
            f"{op} on {workload}: times faster than {other}",
            times[other] / times["native"] if other in times and "native" in times else None,
            goal,
        )
        for other, goal in goals.items()
    ]


def markdown(found: dict[str, Any], picture: bool) -> str:
    """The report as text."""
    rows = found["rows"]
    lines = [f"- {name}: {value}" for name, value in found["environment"].items()]
    lines += [f"- measured on {place(rows[0])}, commit {rows[0]['commit']}"] if rows else []
    parts = ["# GPU report", "\n".join(lines), _stages(found["stages"])]
    goals = [Target(**target) for target in found["targets"]]
    parts += ["## Targets", _targets(goals)] if goals else []
    parts += ["## Figures", *(["![figures](report.png)"] if picture else []), _figures(rows)] if rows else []
    parts += [] if rows else ["Nothing was measured."]
    parts += ["## Steps", _steps(found["suite"])] if found["suite"] else []
    parts += [f"Not all of it can be shown: {found['problem']}"] if "problem" in found else []
    return "\n\n".join(parts) + "\n"


def _stages(stages: Sequence[dict[str, Any]]) -> str:
    body = [[s["name"], s["status"], f"{s['seconds']:.0f}", s["summary"].replace("|", "/")[:120]] for s in stages]
    return as_markdown(("stage", "status", "seconds", "last line"), body)


def _targets(goals: Sequence[Target]) -> str:
    body = [
        [
            t.what,
            "not measured" if t.measured is None else f"{t.measured:.3f}",
            f"{'<=' if t.at_most else '>='} {t.goal}",
            "yes" if t.met else "no",
        ]
        for t in goals
    ]
    return as_markdown(("target", "measured", "goal", "met"), body)


def _figures(rows: Rows) -> str:
    body = [
        [
            *_workload(r),
            r["op"],
            r["method"],
            f"{r['microseconds']:.1f}",
            f"{r['gigabytes_per_second']:.0f}",
            f"{r['of_add']:.3f}",
        ]
        for r in rows
    ]
    return as_markdown(("workload", "dtype", "op", "method", "us", "GB/s", "of y += a x"), body, num_text=4)


def _steps(rows: Rows) -> str:
    body = [
        [
            row["workload"]["name"],
            row["method"],
            f"{row['ratio']:.2f}" if row["status"] == "ok" else str(row["reason"]).replace("|", "/"),
        ]
        for row in rows
    ]
    return as_markdown(("workload", "method", "times plain"), body)


def _workload(row: dict[str, Any]) -> tuple[str, str]:
    return row["workload"]["name"], row["workload"]["dtype"]


def draw(rows: Rows, path: Path) -> bool:
    """Bars of every op's fraction of the yardstick, a panel a workload; False where it cannot be drawn."""
    if not rows or importlib.util.find_spec("matplotlib") is None:
        return False
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    chosen = [r for r in rows if r["op"] in OPS and _workload(r)[1] == "float32"]
    if not chosen:
        return False
    names = list(dict.fromkeys(_workload(r)[0] for r in chosen))
    figure, panels = pyplot.subplots(1, len(names), figsize=(5 * len(names), 4), sharey=True, squeeze=False)
    for panel, name in zip(panels[0], names, strict=True):
        _bars(panel, [r for r in chosen if _workload(r)[0] == name])
        panel.set_title(f"{name}, fp32")
    panels[0][0].set_ylabel("fraction of the bandwidth of y += a x")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return True


def _bars(panel: Any, rows: Iterable[dict[str, Any]]) -> None:
    by_method: dict[str, dict[str, float]] = {}
    for r in rows:
        by_method.setdefault(r["method"], {})[r["op"]] = r["of_add"]
    width = 0.8 / max(1, len(by_method))
    for i, (method, values) in enumerate(by_method.items()):
        panel.bar([OPS.index(op) + i * width for op in values], list(values.values()), width, label=method)
    panel.axhline(0.92, color="grey", linewidth=0.8)
    panel.set_xticks(range(len(OPS)), OPS, rotation=60, ha="right")
    panel.legend()
