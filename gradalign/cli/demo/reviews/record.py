"""The record of the seeds as plain data, and their summary."""

from __future__ import annotations

import statistics
from typing import Any

from gradalign.cli.demo.paired import Interval, interval
from gradalign.cli.demo.reviews.train import Arms

ARMS = ("adamw", "gradalign")


def seed_record(
    seed: int, steps: int, arms: Arms, alignments: dict[str, dict[str, float]], data: dict[str, int]
) -> dict[str, Any]:
    """The results of one seed.

    Args:
        seed: of initialisation, split, data order and dropout.
        steps: of both arms; the curve of the plain arm continues after them.
        arms: after training.
        alignments: "before", "adamw" and "gradalign" (after equal steps), each from `measure.alignment`.
        data: sizes of the split.
    """
    curves = {name: {**vars(arm.curve), "alignment": alignments[name]} for name, arm in zip(ARMS, arms, strict=True)}
    return {
        "seed": seed,
        "steps": steps,
        "further_adamw_steps": len(arms.plain.curve.losses) - steps,
        "cost_factor": arms.cost_factor,
        "data": data,
        "alignment_before": alignments["before"],
        **curves,
    }


def summary(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """Means and paired differences over the seeds; accuracies as fractions, their differences in percentage points."""
    at = {
        "adamw": [accuracy_after(s["adamw"], s["steps"]) for s in seeds],
        "adamw_equal_time": [s["adamw"]["accuracies"][-1][1] for s in seeds],
        "gradalign": [accuracy_after(s["gradalign"], s["steps"]) for s in seeds],
    }
    return {
        "num_seeds": len(seeds),
        "accuracy": {name: interval(values)._asdict() for name, values in at.items()},
        "difference_points": {
            "equal_steps": _points(at["gradalign"], at["adamw"])._asdict(),
            "equal_time": _points(at["gradalign"], at["adamw_equal_time"])._asdict(),
        },
        "steps": seeds[0]["steps"],
        "further_adamw_steps": statistics.fmean(s["further_adamw_steps"] for s in seeds),
        "train_loss": {name: statistics.fmean(_last_loss(s[name], s["steps"]) for s in seeds) for name in ARMS},
        "alignment_before": _mean_alignment([s["alignment_before"] for s in seeds]),
        "alignment_after": {name: _mean_alignment([s[name]["alignment"] for s in seeds]) for name in ARMS},
        "seconds_per_step": {
            name: statistics.median(t for s in seeds for t in s[name]["seconds"][: s["steps"]]) for name in ARMS
        },
        "cost_factor": statistics.median(s["cost_factor"] for s in seeds),
    }


def accuracy_after(curve: dict[str, Any], steps: int) -> float:
    """The test accuracy that was measured after `steps` steps."""
    return dict(curve["accuracies"])[steps]


def _points(ours: list[float], theirs: list[float]) -> Interval:
    return interval([100 * (a - b) for a, b in zip(ours, theirs, strict=True)])


def _last_loss(curve: dict[str, Any], steps: int, window: int = 20) -> float:
    return statistics.fmean(curve["losses"][max(0, steps - window) : steps])


def _mean_alignment(measured: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.fmean(m[name] for m in measured) for name in measured[0]}
