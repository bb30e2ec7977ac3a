"""Schedules of passes, by name: which micro-batches are evaluated where, and what that estimates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gradalign.engine.plain import Plain
from gradalign.engine.schedule import Schedule
from gradalign.engine.space import ParamSpace, Vector
from gradalign.engine.step import NORMALIZATIONS, Settings, Step
from gradalign.estimators.exact import Exact
from gradalign.estimators.leave_one_out import LeaveOneOut
from gradalign.estimators.momentum import InactiveMomentum, Momentum, RunningMean
from gradalign.estimators.prefix import Prefix
from gradalign.estimators.split import split
from gradalign.estimators.symmetric import Symmetric


@dataclass(frozen=True)
class Options:
    """What only some estimators look at.

    Attributes:
        probe_fraction: share of the micro-batches that are probes in `split`.
        probes: which they are: "last" or "rotate".
        gradients: where `leave_one_out` keeps gradients: "device", "host" or "recompute".
        mean: finds the mean of past gradients for `momentum`, and the object that remembers the next one (or None).
    """

    probe_fraction: float
    probes: str
    gradients: str
    mean: Callable[[ParamSpace], tuple[Vector, RunningMean | None]]


@dataclass(frozen=True)
class Estimator:
    """How a schedule is made for a step, and what it can estimate.

    Attributes:
        make: (step, the vector that becomes `.grad`, options) -> schedule.
        own: whether it can displace a micro-batch along its own gradient (variance, cosine).
        normalizations: the normalisations it knows.
    """

    make: Callable[[Step, Vector, Options], Schedule]
    own: bool = True
    normalizations: tuple[str, ...] = NORMALIZATIONS


ESTIMATORS: dict[str, Estimator] = {
    "split": Estimator(lambda step, total, options: split(step, total, options.probe_fraction, options.probes)),
    "prefix": Estimator(lambda step, total, options: Prefix(step, total)),
    "leave_one_out": Estimator(lambda step, total, options: LeaveOneOut(step, total, options.gradients)),
    "symmetric": Estimator(lambda step, total, options: Symmetric(step, total), own=False),
    "momentum": Estimator(
        lambda step, total, options: Momentum(step, total, *options.mean(step.space)),
        own=False,
        normalizations=("direction",),
    ),
    "exact": Estimator(lambda step, total, options: Exact(step, total)),
}

__all__ = [
    "ESTIMATORS",
    "NORMALIZATIONS",
    "Estimator",
    "InactiveMomentum",
    "Options",
    "Plain",
    "RunningMean",
    "Schedule",
    "Settings",
    "Step",
]
