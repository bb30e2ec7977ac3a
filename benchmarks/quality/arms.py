"""The arms: ways to fill `.grad`, each with one parameter of its own and the range that it is searched in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

from torch import Tensor, nn

import gradalign
from benchmarks.quality.task import Batch, Task
from benchmarks.reference_methods import Fishr, IRMv1
from gradalign.baselines import FOMAML, SAM, Reptile
from gradalign.estimators import Split

Loss = Callable[[Batch], Tensor]
Backward = Callable[[Loss, list[Batch]], Any]  # fills .grad
TRIALS = 12
STRIDE = 5  # without a factor in common with TRIALS
ADAMW_DECAY = (0.03, 10.0)  # decoupled: it is multiplied by the lr, where SGD's is added to the gradient


@dataclass(frozen=True)
class Arm:
    """One row of the comparison.

    Attributes:
        name: in rows and tables.
        make: (model, value, ramp) -> what fills `.grad`; `value` is the arm's own parameter, and `ramp` maps a step to the
            factor of a penalty's weight.
        low: of the range of `value`.
        high: of it.
        start: the value where none is chosen, from trials before these tasks and the methods' papers; not from these results.
        passes: of a step with k micro-batches.
        parameter: what `value` is.
        aligned: whether it compares micro-batches.
        control: whether it also runs with sources mixed.
        needs_sources: whether it is defined by labelled sources.
        decay: whether `value` is the weight decay of the optimizer.
        longer: None, or the budget that its steps are stretched to: "passes" or "seconds" of the most expensive aligned arm.
    """

    name: str
    make: Callable[[nn.Module, float, Callable[[int], float]], Backward]
    low: float = 0.0
    high: float = 0.0
    start: float = 0.0
    passes: Callable[[int], int] = lambda k: k
    parameter: str = ""
    aligned: bool = False
    control: bool = False
    needs_sources: bool = False
    decay: bool = False
    longer: str | None = None


def spaced(low: float, high: float, num: int) -> list[float]:
    """`num` numbers from `low` to `high`, equally spaced in their logarithm, to three digits."""
    return [float(f"{low * (high / low) ** (i / (num - 1)):.3g}") for i in range(num)]


def trials(task: Task, arm: Arm) -> list[tuple[float, float]]:
    """The `TRIALS` settings (lr, value) of an arm.

    All arms have the same learning rates. With a parameter each comes with another value of it, the i-th with the (5 i mod
    12)-th, so that the settings are spread over the plane: any two are at least two steps of the one or of the other apart.
    """
    lrs = spaced(*task.lrs, TRIALS)
    if not arm.parameter:
        return [(lr, 0.0) for lr in lrs]
    low, high = ADAMW_DECAY if arm.decay and task.optimizer == "adamw" else (arm.low, arm.high)
    values = spaced(low, high, TRIALS)
    return [(lr, values[STRIDE * i % TRIALS]) for i, lr in enumerate(lrs)]


def plain(model: nn.Module, value: float, ramp: Callable[[int], float]) -> Backward:
    """The mean loss."""

    def backward(loss_fn: Loss, micro_batches: list[Batch]) -> None:
        for batch in micro_batches:
            (loss_fn(batch) / len(micro_batches)).backward()

    return backward


def agreement(
    objective: Any,
    normalize: Any,
    estimator: Any,
    model: nn.Module,
    value: float,
    ramp: Callable[[int], float],
    first_layer: bool = False,
) -> Backward:
    """GradAlign; with `first_layer` agreement is measured on the first layer that has parameters."""
    return gradalign.GradAlign(
        model,
        lambda step: value * ramp(step),
        objective=objective,
        normalize=normalize,
        estimator=estimator,
        params=_displaced(model, first_layer),
    ).backward


def first_layer_of(model: nn.Module) -> nn.Module:
    """The first module with parameters of its own."""
    return next(m for m in model.modules() if next(m.parameters(recurse=False), None) is not None)


def _displaced(model: nn.Module, first_layer: bool) -> list[nn.Parameter] | None:
    """What is given as `params`; None: all of them."""
    return list(first_layer_of(model).parameters()) if first_layer else None


def baseline(
    method: Any, model: nn.Module, value: float, ramp: Callable[[int], float], first_layer: bool = False
) -> Backward:
    """A method of `gradalign.baselines`; with `first_layer` it displaces the first layer that has parameters alone."""
    fill: Backward = method(model, value, params=_displaced(model, first_layer)).backward
    return fill


def penalty(method: Any, divided: bool, model: nn.Module, value: float, ramp: Callable[[int], float]) -> Backward:
    """A method of `benchmarks.reference_methods` that adds a penalty to the mean loss."""
    steps = count()

    def backward(loss_fn: Loss, micro_batches: list[Batch]) -> None:
        method(model, loss_fn, None, value * ramp(next(steps)), divided).fill(micro_batches)

    return backward


def twice(k: int) -> int:
    """2k."""
    return 2 * k


def _aligned(
    name: str,
    objective: str,
    normalize: str,
    low: float,
    high: float,
    start: float,
    control: bool = True,
    first_layer: bool = False,
) -> Arm:
    make = partial(agreement, objective, normalize, "leave_one_out", first_layer=first_layer)
    return Arm(name, make, low, high, start, twice, f"weight ({normalize})", aligned=True, control=control)


def _inner(name: str, method: Any, control: bool = True, first_layer: bool = False) -> Arm:
    make = partial(baseline, method, first_layer=first_layer)
    return Arm(name, make, 0.01, 3.0, 0.5, parameter="inner lr", aligned=True, control=control)


def _invariant(name: str, method: Any, start: float, divided: bool = False) -> Arm:
    make = partial(penalty, method, divided)
    return Arm(
        name, make, 0.1, 1000.0, start, parameter="weight", aligned=True, control=not divided, needs_sources=True
    )


ROTATING = Split(probe_fraction=0.5, probes="rotate")
ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm("plain", plain),
        Arm("weight decay", plain, 0.003, 1.0, 0.01, parameter="weight decay", decay=True),
        Arm("SAM", partial(baseline, SAM), 0.03, 1.0, 0.05, twice, "rho"),
        _inner("Reptile", Reptile),
        _inner("FOMAML", FOMAML, control=False),
        _aligned("dot", "dot", "gradient", 0.03, 2.0, 0.3),
        _aligned("norm", "norm", "direction", 0.01, 1.0, 0.03, control=False),
        _aligned("variance", "variance", "direction", 0.03, 10.0, 1.0),
        _aligned("cosine", "cosine", "none", 0.03, 3.0, 0.3),
        Arm(
            "cosine, split",
            partial(agreement, "cosine", "none", ROTATING),
            0.03,
            3.0,
            0.3,
            lambda k: k + max(1, k // 2),
            "weight (none)",
            aligned=True,
        ),
        Arm("SAM, first layer", partial(baseline, SAM, first_layer=True), 0.03, 1.0, 0.05, twice, "rho"),
        _inner("Reptile, first layer", Reptile, first_layer=True),
        _aligned("variance, first layer", "variance", "direction", 0.03, 10.0, 1.0, first_layer=True),
        _aligned("cosine, first layer", "cosine", "none", 0.03, 3.0, 0.3, first_layer=True),
        _invariant("Fishr", Fishr, 1000.0),
        _invariant("IRMv1", IRMv1, 100.0),
        _invariant("Fishr, divided", Fishr, 1000.0, divided=True),
        _invariant("IRMv1, divided", IRMv1, 100.0, divided=True),
        Arm("plain, equal passes", plain, longer="passes"),
        Arm("plain, equal seconds", plain, longer="seconds"),
    )
}
