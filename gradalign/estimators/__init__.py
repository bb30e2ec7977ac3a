"""Schedules of passes, by name: which micro-batches are evaluated where, and what that estimates."""

from __future__ import annotations

from collections.abc import Callable

from gradalign.estimators.plain import Plain
from gradalign.estimators.schedule import Schedule
from gradalign.estimators.split import split
from gradalign.estimators.step import Settings, Step
from gradalign.space import Vector

# (step, total, probe_fraction) -> the schedule of one step; `total` is the vector that becomes `.grad`.
ESTIMATORS: dict[str, Callable[[Step, Vector, float], Schedule]] = {"split": split}

__all__ = ["ESTIMATORS", "Plain", "Schedule", "Settings", "Step", "split"]
