"""`tune`: one step that only measures and is then undone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from gradalign.backends.dispatch import BackendName
from gradalign.engine import validation
from gradalign.engine.method import BatchClosure, Method, MethodOptions, Reduction, StepRequest
from gradalign.engine.replay import RandomState, with_generators
from gradalign.engine.side_effects import no_tensor_filled_again, renormalised_weights
from gradalign.engine.space import Vector
from gradalign.engine.step import Settings, Step
from gradalign.objectives import objective
from gradalign.tuning.curve import DIFFERENCES, Point, recommended_radius, smallest_error
from gradalign.tuning.differences import Differences
from gradalign.tuning.reference import Reference, compute_reference, cross_check
from gradalign.tuning.result import TuningResult
from gradalign.tuning.sweep import RADII, sweep_radii
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
    """Measure the error of finite differences on your model and micro-batches, and recommend a radius and weights.

        error(r) = || (1/m) sum_i D_i(r) - (1/m) sum_i H_i x^ || / || (1/m) sum_i H_i x^ ||

    The sums run over the m probes; x^ is the mean gradient of the other micro-batches, scaled to length 1 (the displacement of
    `split` for dot and norm); D_i(r) is the forward or central difference over a displacement of length r, computed as in
    `GradAlign`. The reference H_i x^ comes from double backward, or from Richardson extrapolation of central differences where
    double backward cannot run.

    Nothing is changed: parameters, buffers and random number generators are restored bit for bit, `.grad` is None, training
    mode is kept. All passes of a micro-batch see the same random numbers (dropout) and buffers. Memory: up to nine more copies
    of the parameters in float32, for an extrapolation eleven. Passes: k, 2 m per radius and for the default one, about 3 m for
    double backward, 6 m for the weights; for an extrapolation 2 m per radius, the default sweep included.

    Args:
        model: the module, or several.
        loss_fn: micro_batch -> scalar loss with a graph, as for `GradAlign.backward`.
        micro_batches: k >= 2 of them, as in training.
        radii: lengths of displacements, in the units of the parameters, from 1e-18 to 1e18.
        reference: "auto", "double_backward" or "richardson".
        probe_fraction: m / k.
        params: the parameters to displace; None: all that require grad.
        scaler: the GradScaler that scales the losses.
        optimizer: a `gradalign.optim` optimizer whose fp32 masters are displaced.
        reduction: "mean", or "sum" where loss_fn already divides by k.
        has_aux: whether loss_fn returns (loss, auxiliary output).
        backward: called to differentiate the scaled loss; None: autograd.
        backend: of the kernels, "auto" or a name.

    Returns:
        The errors by radius, the recommended radius for both differences, the displacement achieved, and starting weights.
        `print` shows it, `.plot(path)` draws it.

    Raises:
        ValueError: an argument is out of range, a `.grad` is not None, or the mean gradient of the micro-batches before the
            probes is 0 or not finite, that of the probes is not finite, or no radii have differences to extrapolate.
        TypeError: an argument has the wrong type, such as a single number for `radii`.
        RuntimeError: reference="double_backward" and an operation is not twice differentiable.

    Examples:
        >>> import torch, gradalign
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        >>> result = gradalign.tune(model, lambda x: model(x).square().mean(), list(torch.randn(8, 16, 3)))
        >>> result.reference, sorted(result.radius)
        ('double_backward', ['central', 'forward'])
    """
    sweep = sweep_radii(radii)
    validation.one_of("reference", reference, REFERENCES)
    batches = validation.micro_batches(micro_batches)
    if not isinstance(micro_batches, Sequence):
        no_tensor_filled_again(batches)
    tuner = _Tuner(
        model,
        probe_fraction,
        MethodOptions(params, scaler, backend=backend, optimizer=optimizer, check_replay=True),
        sweep,
    )

    random_state = RandomState(with_generators({p.device for p in tuner.trainable()}))
    renormalised = _Renormalised(tuner.modules())
    grad_enabled, step = torch.is_grad_enabled(), None

    def clean_up() -> None:
        tuner._roll_back(step, grad_enabled)
        random_state.put_back()
        renormalised.put_back()

    try:
        try:
            step = tuner._begin(StepRequest(len(batches), reduction, has_aux, backward))
            assert isinstance(step.schedule, Differences)
            step.schedule.run([BatchClosure(loss_fn, batch) for batch in batches])
            step.check_replay(step.step.gradient_norm)
            step.passes.stop_observing()
            return _measure(step.schedule, reference)
        finally:
            clean_up()
    finally:  # once more, in case an interrupt came meanwhile
        clean_up()


class _Renormalised:
    """Copies of the weights that a forward at theta writes, as in training: those of embeddings with `max_norm`."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._kept = [(w, w.detach().clone()) for w in renormalised_weights(modules)]

    @torch.no_grad()
    def put_back(self) -> None:
        """The weights as they were."""
        for weight, value in self._kept:
            weight.copy_(value)


def _measure(differences: Differences, method: str) -> TuningResult:
    radii = differences.asked
    wide, measured = {*radii, *RADII}, sorted({*radii, differences.step.radius})  # the user's may all be too long
    reference = compute_reference(differences, method, wide)
    points = _curve(differences, reference, measured)
    if method == "auto":
        better = cross_check(differences, reference, smallest_error(points, "central").central, wide)
        if better is not None:
            reference, points = better, _curve(differences, better, measured)
    return _result(differences, reference, points)


def _curve(differences: Differences, reference: Reference, radii: Sequence[float]) -> tuple[Point, ...]:
    def point(radius: float) -> Point | None:
        gradients = differences.gradients_if_any(radius)
        if gradients is None:
            return None
        return Point(
            radius,
            forward=differences.relative_error(differences.forward(gradients), reference.product),
            central=differences.relative_error(differences.central(gradients), reference.product),
            displacement_cosine=gradients.cosine,
            displacement_length=gradients.relative_length,
            moved=gradients.moved,
        )

    return tuple(found for radius in radii if (found := point(radius)) is not None)


def _result(differences: Differences, reference: Reference, points: tuple[Point, ...]) -> TuningResult:
    step, space = differences.step, differences.step.space
    measured = [space.params[i] for i in space.measured]
    default = step.radius  # before the weights set another
    curve = tuple(point for point in points if point.radius in differences.asked)
    return TuningResult(
        curve=curve,
        radius={name: recommended_radius(curve, name) for name in DIFFERENCES},
        default_radius=default,
        reference=reference.method,
        uncertainty=reference.uncertainty,
        reason=reference.reason,
        weights=starting_weights(differences, reference, smallest_error(points, "central")),
        dtypes=tuple(sorted({str(p.dtype).removeprefix("torch.") for p in measured})),
        masters=step.displacement.with_masters,
        autocast=step.passes.autocast,
        numel=sum(p.numel() for p in measured),
        num_probes=differences.num_probes,
    )


class _Tuner(Method):
    """A method whose steps are never completed."""

    def __init__(
        self,
        model: nn.Module | Iterable[nn.Module],
        probe_fraction: float,
        options: MethodOptions,
        radii: Sequence[float] = (),
    ) -> None:
        settings = Settings(objective("dot"), "direction", central=True, radius=None, telemetry=False)
        super().__init__(model, settings, options)
        self._radii = radii
        self._probe_fraction = validation.fraction("probe_fraction", probe_fraction)

    def trainable(self) -> list[Parameter]:
        """All parameters that require grad."""
        return self._models.trainable()

    def modules(self) -> list[nn.Module]:
        """The models."""
        return self._models.modules

    def _schedule(self, step: Step, total: Vector) -> Differences:
        return Differences(step, total, self._probe_fraction, self._radii)
