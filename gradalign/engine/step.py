"""What every schedule of passes shares within one optimizer step: settings, scales, displacement, sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from gradalign.backends.reference_scalars import cosine, inverse_length
from gradalign.engine.devices import to_device
from gradalign.engine.displacement import Displacement
from gradalign.engine.loss_scaling import LossScaling
from gradalign.engine.low_precision import LOW_PRECISION
from gradalign.engine.memory import Memory
from gradalign.engine.passes import Passes
from gradalign.engine.ranks import Ranks
from gradalign.engine.sketch import Sketch, cosines
from gradalign.engine.sources import Sources
from gradalign.engine.space import ParamSpace, Vector
from gradalign.engine.term import Term
from gradalign.objectives import Objective
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
        separate: whether the micro-batches of every rank count by themselves.
    """

    objective: Objective
    normalize: Normalization
    central: bool
    radius: float | None
    telemetry: bool
    separate: bool = False


class Aim(NamedTuple):
    """A displacement d = scale_x x + scale_y g = eps v; all numbers are 0 where ||v|| is 0 or not finite.

    Attributes:
        numbers: those below as the backends' `aim` returns them. Few of them are asked for in a step.
    """

    numbers: Tensor

    @property
    def scale_x(self) -> Tensor:
        """The factor of the stored reference."""
        return self.numbers[0]

    @property
    def scale_y(self) -> Tensor:
        """The factor of the stored own gradient."""
        return self.numbers[1]

    @property
    def eps(self) -> Tensor:
        """The factor of v."""
        return self.numbers[2]

    @property
    def norm(self) -> Tensor:
        """||v||."""
        return self.numbers[3]

    @property
    def gradient_norm(self) -> Tensor:
        """That of the mean gradient, or where that is a mean of unit gradients of the own one."""
        return self.numbers[4]


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
        masters: float32 masters of the parameters, where the optimizer keeps some.
        follow_master: brings the master of a parameter up to date after the parameter was written.
        memory: what the estimator remembers.
        frozen_low_precision: whether the models have frozen parameters in 16 bits, so that they compute in 16 bits.
    """

    masters: Vector | None
    follow_master: Callable[[Tensor], Any] | None
    memory: Memory
    frozen_low_precision: bool


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
        self._by_scaler = scaling.by_scaler
        self._carried = carried
        self.memory = carried.memory
        self.displacement = Displacement(space, carried.masters, carried.follow_master)
        self.agreement = Agreement(self.num if self.sources is None else self.sources.num, space.zero())
        self._mean_scales: dict[int, Tensor] = {}
        self.sketches: list[Tensor] = []
        self._nominal_weight = weight.value
        self.active = weight.value != 0
        self._aim: Aim | None = None  # the last one
        self._length: float | None = None
        self._cosines: list[Tensor] = []
        self.separate = settings.separate and space.ranks is not None
        self.num_everywhere = self.num * space.ranks.num if self.separate and space.ranks is not None else self.num
        self._square: Tensor | None = None  # of .grad, where its last sum gave it
        self._term: tuple[Tensor, Tensor] | None = None  # its square, over what this process holds, and its factor

    @property
    def gradient_norm(self) -> Tensor | None:
        """That of the reference, or of a micro-batch where that is a mean of unit gradients; None before a displacement."""
        return None if self._aim is None else self._aim.gradient_norm

    @cached_property
    def own_scale(self) -> Tensor:
        """What turns a stored gradient into the gradient of its micro-batch."""
        return self.num / self.loss_scale

    @cached_property
    def rounding(self) -> float:
        """The square of the rounding of a sum of the k gradients, relative to theirs.

        Where they are equal, each addition rounds the same way: the sum is off by about k eps / 16, and one element by up to
        k eps / 6 (measured), which counts where few elements are large. Sums of squares have a rounding of their own. Never so
        much that gradients that do not cancel would count as rounding.
        """
        epsilon = self.space.epsilon
        # In 16 bits that of one element would take in terms that are more than rounding.
        share = 36 if epsilon < 1e-6 else 200
        return min(max((self.num_everywhere * epsilon) ** 2 / share, self.space.sums_rounding), 2.0**-8)

    @cached_property
    def grain(self) -> float:
        """The rounding of differences of gradients, relative to these; 0 where it may be as large as a term is."""
        return 4 * self.space.epsilon if self.space.epsilon < 1e-6 else 0.0

    @cached_property
    def own_square(self) -> Tensor:
        """What turns a product of two stored gradients into that of the gradients."""
        return self.own_scale**2

    @cached_property
    def hooked(self) -> bool:
        """Whether a parameter has hooks on its gradient, which need not be linear."""
        return any(p._backward_hooks for p in self.space.params)

    @cached_property
    def _low_precision(self) -> bool:
        """Whether parameters say that the model computes in 16 bits, or gradients are reduced in 16."""
        ranks = self.space.ranks
        if ranks is not None and ranks.reduce_dtypes & LOW_PRECISION:
            return True
        return self._carried.frozen_low_precision or bool(self.space.measured_dtypes & LOW_PRECISION)

    @property
    def radius(self) -> float:
        """Length of the displacement; known once a base pass has shown whether autocast is active."""
        if self.settings.radius is not None:
            return self.settings.radius
        return RADIUS_LOW_PRECISION if self._low_precision or self.passes.autocast else RADIUS

    def aim(
        self, sums: Tensor, scale_x: Tensor, own: Tensor | None = None, *, others: bool = False, part: float = 1.0
    ) -> Aim:
        """The displacement of the objective.

        Args:
            sums: [x.x, x.g, g.g] of the reference and the own gradient as they are stored.
            scale_x: what turns the stored reference into the mean of (unit) gradients.
            own: what turns the stored own gradient into itself; None: `own_scale`.
            others: the reference is the sum over all micro-batches, and x that over all but the own one.
            part: what of the own gradient is in it then, where it is no sum of unit gradients.
        """
        objective = self.settings.objective
        numbers = self.space.at_home.aim(
            sums,
            scale_x,
            self.own_scale if own is None else own,
            self.radius,
            objective.alpha,
            objective.beta,
            part,
            objective.unit,
            others,
            self.rounding,
        )
        self._aim = aim = Aim(numbers)
        return aim

    def displace(self, aim: Aim, x: Vector, g: Vector | None = None) -> tuple[Tensor, Tensor]:
        """Displace the parameters along the objective's v.

        Returns:
            eps, the achieved one; and q with H w s ~ q (gradient there - gradient here), the normalisation's s and w.
        """
        sums = self.displacement.displace(x, aim.scale_x, g, None if g is None else aim.scale_y)
        direction = self.settings.normalize == "direction"
        eps, q, achieved = self.space.at_home.reached(sums, aim.numbers, direction).unbind()
        self._length = self.radius
        self._cosines.append(achieved)
        return eps, q

    def shift(self, x: Vector, scale: Tensor) -> None:
        """Displace by d = scale x, of the length of the weight."""
        sums = self.displacement.displace(x, scale)
        self._length = abs(self._nominal_weight)
        self._cosines.append(cosine(*sums.unbind()))

    def _over_ranks(
        self, ranks: Ranks, loss: Tensor, square: Tensor, found: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """What of the statistics is of this process alone, put together over ranks in one reduction."""
        own = [loss.double(), *(found[name].double() for name in ("dot",) if name in found)]
        if self.separate:  # what is known of agreement, and the displacement, are every rank's own
            own += [*self.agreement.sums, *(c.double() for c in self._cosines)]
            means = ranks.mean(torch.stack(own))
            first = len(own) - len(self._cosines)
            self.agreement.sums, self._cosines = means[first - 3 : first].unbind(), list(means[first:].unbind())
            return means[0].to(loss.dtype), square, found
        sums = [square, *self.agreement.sums, *([] if self._term is None else [self._term[0]])]
        whole, means = ranks.total_and_mean(torch.stack(sums), torch.stack(own))
        self.agreement.sums = whole[1:4].unbind()
        if self._term is not None:
            self._term = (whole[4], self._term[1])
        return means[0].to(loss.dtype), whole[0], found | ({"dot": means[1]} if "dot" in found else {})

    def mean_scale(self, num: int) -> Tensor:
        """What turns a stored sum of `num` gradients, or unit gradients, into the objective's mean of them."""
        if num not in self._mean_scales:
            self._mean_scales[num] = (self.space.one() if self.settings.objective.unit else self.own_scale) / num
        return self._mean_scales[num]

    def record(self, g: Vector, total: Vector, num_before: int) -> Tensor:
        """total <- total + g, the sum of `num_before` gradients so far; returns the stored g.g, before `total`."""
        square, cross = self.space.accumulate(total, g, over=self.space.measured).unbind()
        if self.space.others:
            self.space.accumulate(total, g, over=self.space.others)
        self.sketch(g)
        self.agreement.square(square, self.own_square)
        if num_before:
            self.agreement.dots(cross, num_before, self.own_square)
        return square

    def sketch(self, g: Vector) -> None:
        """Note the gradient of a micro-batch for the cosines of tasks, where they are wanted."""
        if self.tasks is not None:
            self.sketches.append(Sketch(self.space).of(g))

    def record_unit(self, g: Vector, square: Tensor, units: Vector, num_before: int) -> None:
        """units <- units + g / ||g||, the sum of `num_before` unit gradients so far; `square` is what `record` returned."""
        unit = inverse_length(self.space.total(square))
        _, cross = self.space.accumulate(units, g, unit, over=self.space.measured).unbind()
        if num_before:
            self.agreement.cosines(cross * unit, num_before)

    def new_term(self, largest: float = 1.0) -> Term:
        """A term of 0; see `Term`."""
        return Term(self.space, largest, rescaled=self.settings.normalize == "gradient")

    def close(self, total: Vector, term: Term | None) -> None:
        """.grad <- total - weight term, the term rescaled where the normalisation says so."""
        if term is not None:
            space = self.space
            factor = space.one() if term.unit is None else term.unit
            square = space.partial_norm_dot(term.vector)[0]
            if self.settings.normalize == "gradient":
                parts = space.zero() if term.parts is None else term.parts
                sums = space.total(torch.stack((square, space.partial_norm_dot(total)[0], parts)))
                square, (norm, total_norm, parts) = space.part(sums[0]), sums.sqrt().unbind()
                more = norm > self.grain * parts
                factor = torch.where(more & (factor != 0), total_norm / norm * factor.sign(), 0.0)
            self._term = None if self.separate else (square, factor)
            self._square = space.combine(total, total, term.vector, space.one(), -self.weight * factor)
            if self.separate:
                self.average(total)
        self.space.set_grads(total)

    def average(self, vector: Vector, share: float = 1.0) -> None:
        """A vector that every rank has its own of becomes its mean over ranks, times a share."""
        if self.space.ranks is not None:
            self.space.fill(vector)
            self.space.ranks.average([t for t in vector if t is not None], share)

    def stats(self, losses: Sequence[Tensor], found: dict[str, Tensor]) -> AlignmentStats:
        """The statistics of the step, its gradient being in `.grad`.

        Args:
            losses: of the base passes.
            found: what only the schedule knows: "dot" is of this process, the others are the same everywhere.
        """
        loss = self._mean_loss(losses)
        square = self._square
        if square is None:
            square = self.space.partial_norm_dot(self.space.grads())[0]
        if self.space.ranks is not None:
            loss, square, found = self._over_ranks(self.space.ranks, loss, square, found)
        known: dict[str, Tensor] = found | self.agreement.known()
        if self._term is not None:
            known["term_norm"] = self._unscaled(self._term[0].sqrt() * self._term[1].abs())
        if self._cosines:
            known["displacement_cosine"] = torch.stack(self._cosines).mean()
        names: tuple[str, ...] | None = None
        if self.tasks is not None and len(self.sketches) == self.num:
            names = tuple(sorted(set(self.tasks)))
            known["task_cosines"] = self._task_cosines(names)
        return AlignmentStats(
            loss=loss,
            grad_norm=self._unscaled(square.sqrt()),
            radius=self._length,
            passes=self.passes.count,
            tasks=names,
            **known,
        )

    def _mean_loss(self, losses: Sequence[Tensor]) -> Tensor:
        """Mean of the L_i, in the dtype of the losses."""
        kept, share, wide = self.passes.kept.side_by_side(losses), self.loss_share, torch.float64
        values = _side_by_side(losses, self.space.home) if kept is None else to_device(kept, self.space.home)
        mean = values.mean(dtype=wide) if share == 1 else values.sum(dtype=wide) * share / len(losses)
        return mean.to(losses[0].dtype)

    def _unscaled(self, norm: Tensor) -> Tensor:
        """A norm without the loss scale."""
        return norm / self.loss_scale if self._by_scaler else norm

    def _task_cosines(self, names: Sequence[str]) -> Tensor:
        """Cosines between the sketches of the tasks' gradients."""
        assert self.tasks is not None
        pairs = list(zip(self.tasks, self.sketches, strict=True))
        sums = [sum((s for t, s in pairs if t == name), torch.zeros_like(pairs[0][1])) for name in names]
        return cosines(self.space.total(torch.stack(sums)))


def stacked(losses: Sequence[Tensor], home: torch.device) -> Tensor:
    """Some losses as one float64 tensor."""
    return to_device(_side_by_side(losses, home), home, torch.float64)


def _side_by_side(losses: Sequence[Tensor], home: torch.device) -> Tensor:
    """Some losses as one tensor, of their dtype if they have one in common."""
    if len({(loss.dtype, loss.device) for loss in losses}) > 1:
        losses = [to_device(loss, home, torch.float64) for loss in losses]
    return to_device(torch.stack(list(losses)), home)
