"""`GradAlign`: the whole aligned step behind one call that takes the place of `loss.backward()`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import Parameter

from gradalign import estimators
from gradalign.engine import validation
from gradalign.engine.method import Method
from gradalign.engine.space import ParamSpace, Vector
from gradalign.engine.weight import Weight
from gradalign.estimators import NORMALIZATIONS, InactiveMomentum, Options, RunningMean, Schedule, Settings, Step
from gradalign.objectives import objective as objective_named

DIFFERENCES = ("forward", "central")


class GradAlign(Method):
    """Fills `.grad` with the gradient of `mean_i L_i - weight * A`, A the agreement of the micro-batches' gradients.

        .grad = gbar - weight * term,      term = s sum_i omega_i H_i w_i

    with Hessian-vector products from finite differences: parameters are displaced in place, one more backward pass runs, the
    parameters come back bit for bit. It never wraps, owns or steps the optimizer.

    Args:
        model: the module, or several, whose parameters are trained and whose buffers displaced passes leave alone.
        weight: of the term, a number or a function of the step (counted from 0). Its unit depends on `normalize`: a length in
            parameter space for "direction", as SAM's rho.
        objective: A: "dot" (mean g_i . g_j), "norm" (its negative), "variance" (minus the sample variance of the g_i) or
            "cosine" (mean cos(g_i, g_j)).
        normalize: "direction" (w_i = v_i^, s = 1), "none" (w_i = v_i, s = 2: the gradient of A itself) or "gradient" (the
            term rescaled to the norm of gbar).
        estimator: which micro-batches are compared with which: "split", "prefix", "leave_one_out", "symmetric", "momentum" or
            "exact" (docs/estimators.md).
        probe_fraction: share of the micro-batches that are probes in `split`.
        probes: which they are in `split`: the "last", or "rotate" (each position equally often; anchors' base passes first).
        gradients: where `leave_one_out` keeps them: "device", "host" (pinned memory) or "recompute".
        difference: "forward" or "central" (one more pass a probe).
        radius: length of the displacement [parameter]; None: 0.01, or 0.03 for bf16/fp16 parameters or under autocast.
        every: the term is there in steps with `step % every == 0`, with the weight times `every`.
        params: the parameters that A is measured on and that are displaced; None: all that require grad.
        scaler: the GradScaler that scales the losses.
        telemetry: also look at every gradient's norm: dot, cosine and noise scale in every step, for two more copies.
        optimizer: a `gradalign.optim` optimizer; its float32 masters serve as backup (displaced parameters are
            round(master + d), no copy is made), its first moment as the mean of past gradients of `momentum`.
        zeroed_grads: accept `.grad` that is zeros instead of None on entry, and add to it.
        backend: what runs the kernels: "auto", "reference", "native" or "triton".

    Raises:
        ValueError: a name, number or parameter that does not fit.
        TypeError: an argument of the wrong type.

    Examples:
        >>> import torch, gradalign
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> aligner = gradalign.GradAlign(model, weight=0.001)
        >>> micro_batches = gradalign.chunk(torch.randn(16, 3), 8)
        >>> loss = aligner.backward(lambda x: model(x).square().mean(), micro_batches)
        >>> optimizer.step(); optimizer.zero_grad()
        >>> aligner.stats.passes
        10
    """

    def __init__(
        self,
        model: nn.Module | Iterable[nn.Module],
        weight: float | Callable[[int], float],
        *,
        objective: str = "dot",
        normalize: str = "direction",
        estimator: str = "split",
        probe_fraction: float = 0.25,
        probes: str = "last",
        gradients: str = "device",
        difference: str = "forward",
        radius: float | None = None,
        every: int = 1,
        params: Iterable[Parameter] | None = None,
        scaler: torch.amp.GradScaler | None = None,
        telemetry: bool = False,
        optimizer: Any = None,
        zeroed_grads: bool = False,
        backend: str = "auto",
    ) -> None:
        settings = Settings(
            objective=objective_named(objective),
            normalize=validation.one_of("normalize", normalize, NORMALIZATIONS),
            central=validation.one_of("difference", difference, DIFFERENCES) == "central",
            radius=None
            if radius is None
            else validation.positive("radius", radius, "a length, in the units of the parameters"),
            telemetry=validation.flag("telemetry", telemetry),
        )
        self._estimator = validation.one_of("estimator", estimator, estimators.ESTIMATORS)
        known = estimators.ESTIMATORS[estimator]
        validation.estimator_fits(
            estimator, known.own, known.normalizations, objective, settings.objective.own, normalize
        )
        self._mean = RunningMean()
        self._optimizer = None if optimizer is None else validation.gradalign_optimizer(optimizer)
        if estimator == "momentum" and self._optimizer is not None:
            validation.keeps_first_moment(self._optimizer)
        self._options = Options(
            probe_fraction=validation.fraction("probe_fraction", probe_fraction),
            probes=validation.one_of("probes", probes, ("last", "rotate")),
            gradients=validation.one_of("gradients", gradients, ("device", "host", "recompute")),
            mean=self._past_gradients,
        )
        validation.only_with("probes", probes, "last", "estimator", estimator, "split")
        validation.only_with("gradients", gradients, "device", "estimator", estimator, "leave_one_out")
        super().__init__(
            model,
            settings,
            Weight(weight, every),
            params=params,
            scaler=scaler,
            zeroed_grads=zeroed_grads,
            backend=backend,
        )
        if self._optimizer is not None:
            validation.steps_some(self._optimizer, self._trainable())

    def _schedule(self, step: Step, total: Vector) -> Schedule:
        return estimators.ESTIMATORS[self._estimator].make(step, total, self._options)

    def _inactive_schedule(self, step: Step, total: Vector) -> Schedule:
        if self._estimator == "momentum" and self._optimizer is None and self._weight.may_act:
            return InactiveMomentum(step, total, self._mean)
        return super()._inactive_schedule(step, total)

    def _past_gradients(self, space: ParamSpace) -> tuple[Vector, RunningMean | None]:
        if self._optimizer is None:
            return self._mean.over(space), self._mean
        return [self._optimizer.first_moment(p) for p in space.params], None

    def _masters(self, space: ParamSpace) -> Vector | None:
        if self._optimizer is None:
            return None
        return [self._optimizer.master(p) for p in space.params]

    def _restored(self, space: ParamSpace) -> None:
        if self._optimizer is not None:
            self._optimizer.masters_match(space.params)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: the number of complete steps, and `momentum`'s mean of past gradients."""
        return super().state_dict() | self._mean.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`.

        Raises:
            ValueError: a state without the number of steps.
        """
        super().load_state_dict(state)
        self._mean.load_state_dict(state)
