"""`tune`: one step that measures and is then taken back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from gradalign.backends.dispatch import BackendName
from gradalign.batches import shallow_copy
from gradalign.engine import validation
from gradalign.engine.method import Method, MethodOptions, Reduction, StepRequest
from gradalign.engine.passes import Closure
from gradalign.engine.replay import RandomState
from gradalign.engine.space import Vector
from gradalign.engine.step import Settings, Step
from gradalign.objectives import objective
from gradalign.tuning import reference as references
from gradalign.tuning.differences import Differences
from gradalign.tuning.reference import Reference
from gradalign.tuning.result import DIFFERENCES, Point, TuningResult, recommended
from gradalign.tuning.sweep import RADII, ascending
from gradalign.tuning.weights import starting_weights

REFERENCES = ("auto", "double_backward", "richardson")


def tune(
    model: nn.Module | Iterable[nn.Module],
    loss_fn: Callable[[Any], Any],
    micro_batches: Iterable[Any],
    *,
    radii: Iterable[float] = RADII,
    reference: str = "auto",
    probe_fraction: float = 0.25,
    params: Iterable[Parameter] | None = None,
    scaler: torch.amp.GradScaler | None = None,
    optimizer: Any = None,
    reduction: Reduction = "mean",
    has_aux: bool = False,
    backward: Callable[[Tensor], Any] | None = None,
    backend: BackendName = "auto",
) -> TuningResult:
    """Measure the error of finite differences on one's own model and micro-batches, and recommend a radius and weights.

        error(r) = || (1/m) sum_i D_i(r) - (1/m) sum_i H_i x^ || / || (1/m) sum_i H_i x^ ||

    over the m probes, x^ the unit mean gradient of the others (as `split` displaces for dot and norm), D_i(r) the forward or
    central difference over a displacement of length r, taken as `GradAlign` takes it. The reference H_i x^ is by double
    backward, or where that cannot run by Richardson extrapolation of central differences.

    Everything is left as it was: parameters, buffers and random streams bit for bit, `.grad` None, training mode. Each
    evaluation of a micro-batch has the same random numbers (dropout) and buffers. Memory: up to nine more copies of the
    parameters, in float32; passes: k, 2 m for each radius, about 3 m for a double backward, 6 m for the weights.

    Args:
        model: the module, or several.
        loss_fn: micro_batch -> scalar loss with a graph, as for `GradAlign.backward`.
        micro_batches: k >= 2 of them, of the size and kind to be trained with.
        radii: lengths of displacements, in the units of the parameters, from 1e-18 to 1e18.
        reference: "auto", "double_backward" or "richardson".
        probe_fraction: m / k.
        params: the parameters that are displaced; None: all that require grad.
        scaler: the GradScaler that scales the losses.
        optimizer: a `gradalign.optim` optimizer whose fp32 masters are displaced.
        reduction: "mean", or "sum" where the losses carry their 1/k.
        has_aux: loss_fn returns (loss, anything).
        backward: who differentiates the scaled loss; None: autograd.
        backend: what runs the kernels.

    Returns:
        The curve, the recommended radius for both differences, the displacement achieved, and starting weights. `print` it;
        `.plot(path)` draws it.

    Raises:
        ValueError: arguments that do not fit, a `.grad` that is not None, or anchors whose mean gradient is 0 or not finite.
        TypeError: micro-batches that are no list, or radii that are one number.
        RuntimeError: reference="double_backward" where an operation is not twice differentiable.

    Examples:
        >>> import torch, gradalign
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        >>> result = gradalign.tune(model, lambda x: model(x).square().mean(), list(torch.randn(8, 16, 3)))
        >>> result.reference, sorted(result.radius)
        ('double_backward', ['central', 'forward'])
    """
    sweep = ascending(radii)
    validation.one_of("reference", reference, REFERENCES)
    batches = validation.micro_batches(micro_batches)
    tuner = _Tuner(model, probe_fraction, MethodOptions(params, scaler, backend=backend, optimizer=optimizer))

    def closure_of(batch: Any) -> Closure:
        return lambda: loss_fn(shallow_copy(batch))

    random_state = RandomState({p.device for p in tuner.trainable()})
    step = tuner._begin(StepRequest(len(batches), reduction, has_aux, backward))
    assert isinstance(step.schedule, Differences)
    try:
        step.schedule.run([closure_of(batch) for batch in batches])
        return _measure(step.schedule, sweep, reference)
    finally:
        step.abort()
        random_state.put_back()


def _measure(differences: Differences, radii: Sequence[float], method: str) -> TuningResult:
    ladder = references.ladder(radii, RADII)
    found = references.find(differences, method, ladder)
    curve = _curve(differences, found, radii)
    if method == "auto":
        other = references.second_opinion(differences, found, min(p.central for p in curve), ladder)
        if other is not None:
            found, curve = other, _curve(differences, other, radii)
    radius = {name: recommended(curve, name) for name in DIFFERENCES}
    return _result(differences, found, curve, radius)


def _curve(differences: Differences, reference: Reference, radii: Sequence[float]) -> tuple[Point, ...]:
    def point(radius: float) -> Point:
        pair = differences.at(radius)
        return Point(
            radius,
            forward=differences.apart(differences.forward(pair), reference.product),
            central=differences.apart(differences.central(pair), reference.product),
            displacement_cosine=pair.cosine,
            displacement_length=pair.kept,
            moved=pair.moved,
        )

    return tuple(point(radius) for radius in radii)


def _result(
    differences: Differences, reference: Reference, curve: tuple[Point, ...], radius: dict[str, float]
) -> TuningResult:
    step, space = differences.step, differences.step.space
    measured = [space.params[i] for i in space.measured]
    default = step.radius
    return TuningResult(
        curve=curve,
        radius=radius,
        default_radius=default,
        reference=reference.method,
        uncertainty=reference.uncertainty,
        reason=reference.reason,
        weights=starting_weights(differences, reference, radius["central"]),
        dtypes=tuple(sorted({str(p.dtype).removeprefix("torch.") for p in measured})),
        masters=step.displacement.with_masters,
        autocast=step.passes.autocast,
        numel=sum(p.numel() for p in measured),
        num_probes=differences.m,
    )


class _Tuner(Method):
    """A method whose steps are never completed."""

    def __init__(self, model: nn.Module | Iterable[nn.Module], probe_fraction: float, options: MethodOptions) -> None:
        settings = Settings(objective("dot"), "direction", central=True, radius=None, telemetry=False)
        super().__init__(model, settings, options)
        self._probe_fraction = validation.fraction("probe_fraction", probe_fraction)

    def trainable(self) -> list[Parameter]:
        """All parameters that require grad."""
        return self._models.trainable()

    def _schedule(self, step: Step, total: Vector) -> Differences:
        return Differences(step, total, self._probe_fraction)
