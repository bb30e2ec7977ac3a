"""`GradAlign`: the whole aligned step behind one call that takes the place of `loss.backward()`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from gradalign.backends.dispatch import BackendName
from gradalign.engine.data_parallel import DataParallel
from gradalign.engine.estimator import Estimator
from gradalign.engine.mesh import Mesh
from gradalign.engine.method import Method, MethodOptions
from gradalign.engine.models import params_of
from gradalign.engine.schedule import Schedule
from gradalign.engine.space import Vector
from gradalign.engine.step import NORMALIZATIONS, Normalization, Settings, Step
from gradalign.engine.validation import flag, fraction, one_of, positive
from gradalign.engine.weight import Weight
from gradalign.estimators import EstimatorName, Split, named
from gradalign.objectives import ObjectiveName
from gradalign.objectives import objective as objective_named

Difference = Literal["forward", "central"]
Scope = Literal["all", "rank"]
PROBE_FRACTION = Split.probe_fraction


class GradAlign(Method):
    """Fills `.grad` with the mean gradient minus `weight` times a term that makes the micro-batches' gradients agree.

        .grad = gbar - weight * term,      term = s sum_i omega_i H_i w_i

    which with `normalize="none"` is the gradient of `mean_i L_i - weight * A`, A the agreement. The Hessian-vector products
    come from finite differences: parameters are displaced in place, one more backward pass runs, the parameters come back bit
    for bit. It never wraps, owns or steps the optimizer.

    Args:
        model: the module, or several, whose parameters are trained and whose buffers displaced passes leave alone; of several
            processes' the one in DistributedDataParallel, or after `fully_shard` or `parallelize_module`.
        weight: of the term, a number or a function of the step (counted from 0). Its unit depends on `normalize`: a length in
            parameter space for "direction", as SAM's rho.
        objective: A: "dot" (mean g_i . g_j), "norm" (its negative), "variance" (minus the sample variance of the g_i) or
            "cosine" (mean cos(g_i, g_j)).
        normalize: "direction" (w_i = v_i^, s = 1), "none" (w_i = v_i, s = 2: the gradient of A itself) or "gradient" (the
            term rescaled to the norm of gbar).
        estimator: which micro-batches are compared with which, by name or with its options: "split", "prefix",
            "leave_one_out", "symmetric", "momentum", "exact", or one of `gradalign.estimators` such as
            `Split(probes="rotate")` or `LeaveOneOut(gradients="host")` (docs/estimators.md).
        probe_fraction: share of the micro-batches that are probes in "split", short for `Split(probe_fraction=...)`; other
            estimators have no probes.
        difference: "forward" or "central" (one more pass a probe); of no effect with "momentum" and "exact".
        radius: length of the displacement [parameter]; None: 0.01, or 0.03 for bf16/fp16 parameters or under autocast; of no
            effect with "momentum", which displaces by the weight, and "exact".
        every: the term is there in steps with `step % every == 0`, with the weight times `every`.
        params: the parameters that A is measured on and that are displaced; None: all that require grad.
        scaler: the GradScaler that scales the losses.
        telemetry: also look at every gradient's norm: dot, cosine and noise scale in every step, for two more copies.
        optimizer: a `gradalign.optim` optimizer; its float32 masters serve as backup (displaced parameters are
            round(master + d), no copy is made), its first moment as the mean of past gradients of `momentum`.
        zeroed_grads: accept `.grad` that is zeros instead of None on entry, and add to it.
        check_replay: in the first step with the term, evaluate one loss again from the same parameters, random numbers and
            buffers, and refuse a loss_fn that returns another one: its displaced passes would be wrong without a word.
            Also look at the loss beside the parameters, and warn where it moves in steps too high for the radius.
        scope: under DistributedDataParallel, "all": micro-batch i is what all ranks have as their i-th; or "rank": those of
            every rank count by themselves, so that variance and cosine are those of small batches, and all gradients are
            averaged twice a step ("split" and "leave_one_out", without telemetry).
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
        objective: ObjectiveName = "dot",
        normalize: Normalization = "direction",
        estimator: EstimatorName | Estimator = "split",
        probe_fraction: float = PROBE_FRACTION,
        difference: Difference = "forward",
        radius: float | None = None,
        every: int = 1,
        params: Iterable[Parameter] | None = None,
        scaler: torch.amp.GradScaler | None = None,
        telemetry: bool = False,
        optimizer: Any = None,
        zeroed_grads: bool = False,
        check_replay: bool = True,
        scope: Scope = "all",
        backend: BackendName = "auto",
    ) -> None:
        settings = Settings(
            objective=objective_named(objective),
            normalize=cast(Normalization, one_of("normalize", normalize, NORMALIZATIONS)),
            central=one_of("difference", difference, get_args(Difference)) == "central",
            radius=None if radius is None else positive("radius", radius, "a length, in the units of the parameters"),
            telemetry=flag("telemetry", telemetry),
            separate=one_of("scope", scope, get_args(Scope)) == "rank",
        )
        self._estimator = _estimator(estimator, probe_fraction)
        self._estimator.check(settings, objective)
        super().__init__(
            model,
            settings,
            MethodOptions(params, scaler, zeroed_grads, backend, optimizer, check_replay),
            Weight(weight, every),
        )
        if settings.separate and isinstance(self._models.ranks, DataParallel) and self._models.ranks.every_pass:
            raise ValueError(
                'scope="rank": expected one DistributedDataParallel, whose passes may be left unaveraged; got '
                'find_unused_parameters, static_graph or several wrappers; use scope="all"'
            )
        if settings.separate and isinstance(self._models.ranks, Mesh):
            raise ValueError(
                'scope="rank": expected DistributedDataParallel; got sharded parameters, of which all ranks gather the same, '
                'so that none can be displaced by itself; use scope="all"'
            )
        self._estimator_memory = self._estimator.memory(self._optimizer)
        if self._optimizer is not None:
            _steps_some(self._optimizer, self._models.trainable())

    def _schedule(self, step: Step, total: Vector) -> Schedule:
        return self._estimator.make(step, total)

    def _inactive_schedule(self, step: Step, total: Vector) -> Schedule:
        return self._estimator.make_inactive(step, total)

    def _check_sources(self) -> None:
        if not self._estimator.by_source:
            super()._check_sources()

    def _described(self) -> str:
        return repr(self._estimator)

    def _least_micro_batches(self) -> int:
        ranks = self._models.ranks
        alone = (
            self._settings.separate and ranks is not None and ranks.num > 1 and self._estimator.name == "leave_one_out"
        )
        return 1 if alone else 2

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs.

        Returns:
            The number of complete steps, as "num_steps", and what the estimator remembers: `momentum`'s mean of past gradients
            (at first zeros; a tensor of each parameter's shape, not copied; None for frozen ones), or whose turn it is in
            `Split(probes="rotate")`.
        """
        remembered = self._estimator_memory.state_dict(self._all_parameters, self._weight.may_act)
        return super().state_dict() | remembered

    def _all_parameters(self) -> list[Parameter]:
        """The parameters of the models, frozen ones too, each once."""
        if self._models.ranks is not None:
            self._models.ranks.parameters_are_read()
        return list({id(p): p for module in self._models.modules for p in params_of(module)}.values())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`.

        Args:
            state: what `state_dict` returned, of an aligner with the same estimator and a model with the same parameters.

        Raises:
            TypeError: no mapping.
            ValueError: a state without the number of steps; a mean of other parameters; a negative turn.
        """
        before = self._progress
        super().load_state_dict(state)
        try:
            self._estimator_memory.load_state_dict(state, self._all_parameters)
        except BaseException:
            self._progress = before
            raise


def _estimator(estimator: EstimatorName | Estimator, probe_fraction: float) -> Estimator:
    """The estimator, `probe_fraction` being short for that of `Split`."""
    fraction("probe_fraction", probe_fraction)
    if isinstance(estimator, Estimator) and probe_fraction != PROBE_FRACTION:
        raise ValueError(
            f"probe_fraction: expected it among the options of the estimator; got {probe_fraction!r} beside {estimator}; "
            f"write Split(probe_fraction={probe_fraction!r})"
        )
    return Split(probe_fraction=probe_fraction) if estimator == "split" else named(estimator)


def _steps_some(optimizer: Any, params: Sequence[Tensor]) -> None:
    """The optimizer is that of the model."""
    stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not any(id(p) in stepped for p in params):
        raise ValueError(
            "optimizer: expected the optimizer of the model's parameters; got one that steps none of them; make it from "
            "model.parameters()"
        )
