"""What every schedule of passes shares within one optimizer step: settings, scales, displacement, sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from gradalign.engine.displacement import Displacement
from gradalign.engine.loss_scaling import LossScaling
from gradalign.engine.low_precision import LOW_PRECISION
from gradalign.engine.memory import Memory
from gradalign.engine.passes import Passes
from gradalign.engine.sketch import Sketch, cosines
from gradalign.engine.sources import Sources
from gradalign.engine.space import ParamSpace, Vector
from gradalign.engine.term import Term
from gradalign.objectives import Dots, Objective
from gradalign.telemetry import Agreement, AlignmentStats

RADIUS = 0.01  # 2% (forward) and 0.01% (central) off in fp32: docs/radius.md
RADIUS_LOW_PRECISION = 0.03  # bf16/fp16 parameters or autocast

Normalization = Literal["none", "direction", "gradient"]
NORMALIZATIONS: tuple[Normalization, ...] = get_args(Normalization)


@dataclass(frozen=True)
class Settings:
    """What the user asked for; the same in every step.

    Attributes:
        objective: what the displacement of a micro-batch is.
        normalize: how the term is normalised.
        central: central instead of forward differences.
        radius: length of the displacement; None: the default for the dtype that the model computes in.
        telemetry: whether every gradient's norm is measured.
    """

    objective: Objective
    normalize: Normalization
    central: bool
    radius: float | None
    telemetry: bool


@dataclass(frozen=True)
class Aim:
    """A displacement d = scale_x x + scale_y g = eps v, as 0-dim tensors; all 0 where ||v|| is 0 or not finite."""

    scale_x: Tensor
    scale_y: Tensor
    eps: Tensor
    norm: Tensor


@dataclass(frozen=True)
class MicroBatches:
    """The micro-batches of one step.

    Attributes:
        num: k, how many there are.
        tasks: a label for each, where they are labelled; needs telemetry.
        sources: which come from which source, where agreement is between sources with several of them.
    """

    num: int
    tasks: Sequence[str] | None = None
    sources: Sources | None = None


@dataclass(frozen=True)
class StepWeight:
    """The weight of the term in one step.

    Attributes:
        value: as a number.
        cell: as a 0-dim tensor that stays where it is, so that a captured step finds it there at every replay.
    """

    value: float
    cell: Tensor


@dataclass(frozen=True)
class Carried:
    """What a step takes over from the steps before it.

    Attributes:
        index: how many steps were completed.
        masters: float32 masters of the parameters, where the optimizer keeps some.
        follow_master: brings the master of a parameter up to date after the parameter was written.
        memory: what the estimator remembers.
        frozen_low_precision: whether the models have frozen parameters in 16 bits, so that they compute in 16 bits.
    """

    index: int
    masters: Vector | None = None
    follow_master: Callable[[Tensor], Any] | None = None
    memory: Memory = field(default_factory=Memory)
    frozen_low_precision: bool = False


class Step:
    """One step of k micro-batches.

    Gradients arrive multiplied by `1 / own_scale`: the plain loop's 1/k and the loss scale.

    Args:
        space: the trainable parameters.
        passes: runs the passes.
        settings: what the user asked for.
        micro_batches: how many, and their labels.
        scaling: the loss scale, and the share of a returned loss.
        weight: of the term.
        carried: what it takes over from earlier steps.
    """

    def __init__(
        self,
        space: ParamSpace,
        passes: Passes,
        settings: Settings,
        *,
        micro_batches: MicroBatches,
        scaling: LossScaling,
        weight: StepWeight,
        carried: Carried,
    ) -> None:
        self.space = space
        self.passes = passes
        self.settings = settings
        self.num = micro_batches.num
        self.tasks = micro_batches.tasks
        self.sources = micro_batches.sources
        self.weight = weight.cell
        self.loss_scale = scaling.scale
        self.loss_share = scaling.share
        self._carried = carried
        self.index = carried.index
        self.memory = carried.memory
        self.displacement = Displacement(space, carried.masters, carried.follow_master)
        self.agreement = Agreement(self.num if self.sources is None else self.sources.num, space.scalar(0.0))
        self.own_scale = self.num / self.loss_scale
        self.sketches: list[Tensor] = []
        self._nominal_weight = weight.value
        self.active = weight.value != 0
        self.gradient_norm: Tensor | None = (
            None  # of the reference, or of a micro-batch where that is a mean of unit gradients
        )
        self._length: float | None = None
        self._cosines: list[Tensor] = []

    @cached_property
    def hooked(self) -> bool:
        """Whether a parameter has hooks on its gradient, which need not be linear."""
        return any(p._backward_hooks for p in self.space.params)

    @property
    def radius(self) -> float:
        """Length of the displacement; known once a base pass has shown whether autocast is active."""
        if self.settings.radius is not None:
            return self.settings.radius
        low = self._carried.frozen_low_precision or self.passes.autocast
        low = low or any(self.space.params[i].dtype in LOW_PRECISION for i in self.space.measured)
        return RADIUS_LOW_PRECISION if low else RADIUS

    def aim(self, sums: Tensor, scale_x: Tensor, own: Tensor | None = None) -> Aim:
        """The displacement of the objective.

        Args:
            sums: [x.x, x.g, g.g] of the reference and the own gradient as they are stored.
            scale_x: what turns the stored reference into the mean of (unit) gradients.
            own: what turns the stored own gradient into itself; None: `own_scale`.
        """
        own = self.own_scale if own is None else own
        dots = Dots(sums[0] * scale_x**2, sums[1] * scale_x * own, sums[2] * own**2)
        self.gradient_norm = (dots.gg if self.settings.objective.unit else dots.xx).sqrt()
        alpha, beta = self.settings.objective.coefficients(dots)
        norm = dots.norm_of(alpha, beta)
        usable = norm.isfinite() & (norm > 0)
        eps, scale_x, scale_y = (
            torch.where(usable, value, 0.0)
            for value in (self.radius / norm, self.radius / norm * alpha * scale_x, self.radius / norm * beta * own)
        )
        return Aim(scale_x, scale_y, eps, norm)

    def displace(self, aim: Aim, x: Vector, g: Vector | None = None) -> tuple[Tensor, Tensor]:
        """Displace the parameters along the objective's v.

        Returns:
            eps, the achieved one; and q with H w s ~ q (gradient there - gradient here), the normalisation's s and w.
        """
        delta_d, d_d = self.shift(self.radius, x, aim.scale_x, g, None if g is None else aim.scale_y)
        eps = torch.where(d_d > 0, aim.eps * delta_d / d_d, 0.0)
        length = delta_d / d_d.sqrt()
        q = 1 / length if self.settings.normalize == "direction" else 2 / eps
        return eps, torch.where(delta_d > 0, q, 0.0)

    def shift(
        self, length: float | None, x: Vector, scale: Tensor, g: Vector | None = None, scale_g: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Displace by d = scale x + scale_g g, of the given length (None: the weight); returns delta.d and d.d."""
        delta_d, d_d, delta_delta = self.displacement.displace(x, scale, g, scale_g).unbind()
        self._length = abs(self._nominal_weight) if length is None else length
        self._cosines.append(torch.where(d_d > 0, delta_d / (d_d * delta_delta).sqrt(), 1.0).nan_to_num(0.0))
        return delta_d, d_d

    def mean_scale(self, num: int) -> Tensor:
        """What turns a stored sum of `num` gradients, or unit gradients, into the objective's mean of them."""
        return (self.space.scalar(1.0) if self.settings.objective.unit else self.own_scale) / num

    def unit_of(self, norm_square: Tensor) -> Tensor:
        """What scales a stored gradient to length 1; 0 for a zero gradient."""
        return torch.where(norm_square > 0, norm_square.rsqrt(), 0.0)

    def record(self, g: Vector, total: Vector, num_before: int) -> Tensor:
        """total <- total + g, the sum of `num_before` gradients so far; returns the stored g.g."""
        square, cross = self.space.accumulate(total, g, over=self.space.measured).unbind()
        self.space.accumulate(total, g, over=self.space.others)
        self.sketch(g)
        self.agreement.square(square * self.own_scale**2)
        if num_before:
            self.agreement.dots(cross * self.own_scale**2, num_before)
        return square

    def sketch(self, g: Vector) -> None:
        """Note the gradient of a micro-batch for the cosines of tasks, where they are wanted."""
        if self.tasks is not None:
            self.sketches.append(Sketch(self.space).of(g))

    def record_unit(self, g: Vector, square: Tensor, units: Vector, num_before: int) -> None:
        """units <- units + g / ||g||, the sum of `num_before` unit gradients so far."""
        unit = self.unit_of(square)
        _, cross = self.space.accumulate(units, g, unit, over=self.space.measured).unbind()
        if num_before:
            self.agreement.cosines(cross * unit, num_before)

    def close(self, total: Vector, term: Term | None) -> dict[str, Tensor]:
        """.grad <- total - weight term, the term rescaled where the normalisation says so; returns its norm."""
        found: dict[str, Tensor] = {}
        if term is not None:
            factor = self.space.scalar(1.0) if term.unit is None else term.unit
            norm = self.space.norm_dot(term.vector)[0].sqrt()
            if self.settings.normalize == "gradient":
                total_norm = self.space.norm_dot(total)[0].sqrt()
                factor = torch.where((norm > 0) & (factor != 0), total_norm / norm * factor.sign(), 0.0)
            found["term_norm"] = norm * factor.abs() / self.loss_scale
            self.space.combine(total, total, term.vector, self.space.scalar(1.0), -self.weight * factor)
        self.space.set_grads(total)
        return found

    def stats(self, losses: Sequence[Tensor], found: dict[str, Tensor]) -> AlignmentStats:
        """The statistics of the step, its gradient being in `.grad`."""
        known: dict[str, Tensor] = found | self.agreement.known()
        if self._cosines:
            known["displacement_cosine"] = torch.stack(self._cosines).mean()
        names: tuple[str, ...] | None = None
        if self.tasks is not None and len(self.sketches) == self.num:
            names = tuple(sorted(set(self.tasks)))
            known["task_cosines"] = self._task_cosines(names)
        return AlignmentStats(
            loss=mean_loss(losses, self.loss_share, self.space.home),
            grad_norm=self.space.norm_dot(self.space.grads())[0].sqrt() / self.loss_scale,
            radius=self._length,
            passes=self.passes.count,
            tasks=names,
            **known,
        )

    def _task_cosines(self, names: Sequence[str]) -> Tensor:
        """Cosines between the sketches of the tasks' gradients."""
        assert self.tasks is not None
        pairs = list(zip(self.tasks, self.sketches, strict=True))
        return cosines(
            torch.stack([sum((s for t, s in pairs if t == name), torch.zeros_like(pairs[0][1])) for name in names])
        )


def mean_loss(losses: Sequence[Tensor], share: int, home: torch.device) -> Tensor:
    """Mean of the L_i, in the dtype of the losses."""
    total = torch.stack([loss.to(home, torch.float64, non_blocking=True) for loss in losses]).sum()
    return (total * share / len(losses)).to(losses[0].dtype)
