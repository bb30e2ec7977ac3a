"""The gradient of A by double backward: what finite differences are measured against."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.nn import Parameter

from gradalign.engine import validation
from gradalign.engine.method import Method
from gradalign.engine.space import Vector
from gradalign.engine.weight import Weight
from gradalign.estimators import ESTIMATORS, Schedule, Settings, Step
from gradalign.estimators.exact import Exact
from gradalign.objectives import objective as objective_named


class DoubleBackward(Method):
    """Fills `.grad` with the gradient of `mean_i L_i - weight * A`, A over all pairs, through the graphs of the gradients.

        .grad = gbar - weight * term,      term = (1/k) sum_i s H_i w_i,      H_i w_i = grad (g_i . w_i), w_i held constant

    The naive way to compute what `GradAlign` estimates, and the same as its estimator "exact". Objectives and
    normalisations, and with them the unit of `weight`, are those of `GradAlign`.

    Passes: k, and k more through their gradients; each micro-batch is evaluated once, at theta. Copies over plain training: the
    graphs of all k first backwards, whose size is that of the activations, and 1 or 2 of the parameters' size. Every operation
    must be twice differentiable (fused attention is not).

    Args:
        model: the module, or several, whose parameters are trained.
        weight: of the term, a number or a function of the step (counted from 0).
        objective: A: "dot", "norm", "variance" or "cosine".
        normalize: "direction", "none" or "gradient".
        params: the parameters that A is measured on; None: all that require grad.
        scaler: the GradScaler that scales the losses.
        zeroed_grads: accept `.grad` that is zeros instead of None on entry.
        backend: what runs the kernels: "auto", "reference", "native" or "triton".

    Raises:
        ValueError: a name, number or parameter that does not fit.
        TypeError: an argument of the wrong type.
    """

    def __init__(
        self,
        model: nn.Module | Iterable[nn.Module],
        weight: float | Callable[[int], float],
        *,
        objective: str = "dot",
        normalize: str = "direction",
        params: Iterable[Parameter] | None = None,
        scaler: torch.amp.GradScaler | None = None,
        zeroed_grads: bool = False,
        backend: str = "auto",
    ) -> None:
        settings = Settings(
            objective=objective_named(objective),
            normalize=validation.one_of("normalize", normalize, ESTIMATORS["exact"].normalizations),
            central=False,
            radius=None,
            telemetry=False,
        )
        super().__init__(
            model, settings, Weight(weight), params=params, scaler=scaler, zeroed_grads=zeroed_grads, backend=backend
        )

    def _schedule(self, step: Step, total: Vector) -> Schedule:
        return Exact(step, total)
