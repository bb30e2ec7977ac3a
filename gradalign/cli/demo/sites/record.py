"""The summary of a run over its seeds."""

from __future__ import annotations

import statistics
from typing import Any

from gradalign.cli.demo.paired import Interval, interval
from gradalign.cli.demo.sites.methods import LONGER, METHODS, PLAIN, REPTILE

# In the order of the table: the arms, the longer plain run after the plain one, the controls last.
NAMES = (PLAIN.name, LONGER, *(method.name for method in METHODS[1:]))


def summary(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """Means and paired differences over the seeds, by arm.

    Args:
        seeds: each with `arms`, see `train.train_seed`.

    Returns:
        `num_seeds`, and in `arms` by name: `test` and `own`, accuracies as fractions; `minus_plain`, `minus_longer` and
        `minus_reptile`, paired differences of the test accuracy in percentage points; `by_pointing_right`, the test accuracy
        where 0, 1, ... of the planted sentences point to the right label; `steps`; `seconds` of all steps (their number times
        their median); `cost_factor`.
    """
    return {"num_seeds": len(seeds), "arms": {name: _arm(seeds, name) for name in NAMES}}


def _arm(seeds: list[dict[str, Any]], name: str) -> dict[str, Any]:
    arms = [seed["arms"][name] for seed in seeds]
    steps = statistics.fmean(arm["steps"] for arm in arms)
    return {
        "test": interval([arm["test"] for arm in arms])._asdict(),
        "own": interval([arm["own"] for arm in arms])._asdict(),
        "minus_plain": _points(seeds, name, PLAIN.name)._asdict(),
        "minus_longer": _points(seeds, name, LONGER)._asdict(),
        "minus_reptile": _points(seeds, name, REPTILE.name)._asdict(),
        "by_pointing_right": [
            statistics.fmean(values) for values in zip(*(arm["by_pointing_right"] for arm in arms), strict=True)
        ],
        "steps": steps,
        "seconds": steps * statistics.median(second for arm in arms for second in arm["seconds"]),
        "cost_factor": statistics.median(arm["cost_factor"] for arm in arms),
    }


def _points(seeds: list[dict[str, Any]], ours: str, theirs: str) -> Interval:
    return interval([100 * (seed["arms"][ours]["test"] - seed["arms"][theirs]["test"]) for seed in seeds])
