"""Gradients of the probes at theta and on both sides of it, along the mean gradient of the anchors."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradalign.engine.passes import Closure, ReplayState
from gradalign.engine.schedule import Schedule
from gradalign.engine.space import ParamSpace, Vector
from gradalign.engine.step import Step
from gradalign.estimators.split import num_probes


@dataclass(frozen=True)
class DisplacedGradients:
    """Sums of the probes' gradients at theta + delta and theta - delta; d is the requested displacement.

    Attributes:
        plus: at theta + delta, as stored (times 1/k and the loss scale).
        minus: at theta - delta.
        length: delta . d / ||d||, the length achieved along d; 0 where nothing moved.
        cosine: between delta and d.
        relative_length: ||delta|| / ||d||.
        moved: fraction of the elements that differ from theta.
    """

    plus: Vector
    minus: Vector
    length: float
    cosine: float
    relative_length: float
    moved: float


class Differences(Schedule):
    """Base passes of all micro-batches, then displaced passes of the probes for any number of radii.

    Every pass of a probe starts from the random numbers and buffers of its base pass. Sums are kept in float32 or wider, so
    that the measured error is that of the gradients. The step it belongs to is never completed.

    Args:
        step: the step.
        total: becomes the sum of the anchors' gradients.
        probe_fraction: fraction of the micro-batches that are probes, as in `split`.
        asked: the radii that the user asked for.
    """

    needs_all = True
    several_ranks = False

    def __init__(self, step: Step, total: Vector, probe_fraction: float, asked: Collection[float]) -> None:
        super().__init__(step)
        self.asked = asked
        self.num_probes = num_probes(step.num, probe_fraction)
        self.anchor_sum: Vector = total
        self.unit_sum: Vector = step.space.zeros()
        self.base_sum: Vector = wide_zeros(step.space)
        self.replay_states: list[ReplayState] = []
        self.probes: list[Closure] = []
        self.one = step.space.one()

    @property
    def num_anchors(self) -> int:
        """Number of micro-batches whose mean gradient the probes are displaced along."""
        return self.step.num - self.num_probes

    def run(self, closures: Sequence[Closure]) -> list[Tensor]:
        """Base passes, which sum the anchors' gradients and unit gradients and the probes' gradients; the losses."""
        step, losses = self.step, []
        for i, closure in enumerate(closures[: self.num_anchors]):
            loss, g = step.passes.isolated_pass(closure)
            step.record_unit(g, step.record(g, self.anchor_sum, i), self.unit_sum, i)
            losses.append(loss)
        self.probes = list(closures[self.num_anchors :])
        for closure in self.probes:
            self.replay_states.append(step.passes.replay_state())
            loss, g = step.passes.isolated_pass(closure)
            step.space.accumulate(self.base_sum, g, self.one)
            losses.append(loss)
        self.anchor_norm = step.space.norm_dot(self.anchor_sum, over=step.space.measured)[0].sqrt()
        check_direction(float(self.anchor_norm))
        check_probes(self.norm(self.base_sum), self.num_probes)
        return losses

    def finish(self) -> dict[str, Tensor]:
        """Never called: a tuning step fills in no gradient."""
        raise AssertionError("a tuning step is never completed")

    def gradients_at(self, radius: float) -> DisplacedGradients:
        """The probes' gradients at theta +- delta, where delta is radius x^ as the dtype represents it, x the anchors' sum."""
        step = self.step
        sums = step.displacement.displace(self.anchor_sum, radius / self.anchor_norm)
        moved = step.displacement.num_moved()
        plus = self._probe_sum()
        step.displacement.reflect()
        minus = self._probe_sum()
        step.displacement.restore()
        delta_d, d_d, delta_delta = sums.tolist()
        numel = sum(step.space.params[i].numel() for i in step.space.measured if self.anchor_sum[i] is not None)
        return DisplacedGradients(
            plus,
            minus,
            length=delta_d / d_d**0.5 if delta_d > 0 else 0.0,
            cosine=delta_d / (d_d * delta_delta) ** 0.5 if delta_d > 0 else 0.0,
            relative_length=(delta_delta / d_d) ** 0.5,
            moved=int(moved) / numel,
        )

    def gradients_if_any(self, radius: float) -> DisplacedGradients | None:
        """As `gradients_at`; None where the loss raises at a radius that the user did not ask for."""
        try:
            return self.gradients_at(radius)
        except Exception:  # an assertion, a factorisation, a logarithm: whatever a loss does far from theta
            if radius in self.asked:
                raise
            self.step.displacement.restore()
            return None

    def forward(self, gradients: DisplacedGradients) -> Vector:
        """Mean over the probes of [grad L_i(theta + delta) - grad L_i(theta)] / length: H x^."""
        return self._quotient(gradients.plus, self.base_sum, gradients.length)

    def central(self, gradients: DisplacedGradients) -> Vector:
        """Mean over the probes of [grad L_i(theta + delta) - grad L_i(theta - delta)] / (2 length)."""
        return self._quotient(gradients.plus, gradients.minus, 2 * gradients.length)

    def norm(self, x: Vector) -> float:
        """||x||."""
        return float(self.step.space.norm_dot(x)[0].sqrt())

    def relative_error(self, x: Vector, y: Vector) -> float:
        """||x - y|| / ||y||; 0 where both are 0."""
        space = self.step.space
        difference = wide_zeros(space)
        space.combine(difference, x, y, self.one, -self.one)
        error, size = self.norm(difference), self.norm(y)
        return error / size if size else (float("inf") if error else 0.0)

    def mean_gradient_norm(self) -> float:
        """||gbar||, the mean over all micro-batches."""
        total = wide_zeros(self.step.space)
        self.step.space.accumulate(total, self.anchor_sum, self.one)
        self.step.space.accumulate(total, self.base_sum, self.one)
        return float(self.step.space.norm_dot(total)[0].sqrt() / self.step.loss_scale)

    def _probe_sum(self) -> Vector:
        """The sum of the probes' gradients at the current, displaced parameters."""
        total = wide_zeros(self.step.space)
        for closure, start in zip(self.probes, self.replay_states, strict=True):
            start.put_back()
            self.step.space.accumulate(total, self.step.passes.again(closure), self.one)
        return total

    def _quotient(self, x: Vector, y: Vector, length: float) -> Vector:
        """(x - y) / (m length), without 1/k and loss scale; 0 for length 0."""
        space, quotient = self.step.space, wide_zeros(self.step.space)
        space.combine(quotient, x, y, self.one, -self.one)
        factor = self.step.own_scale / (self.num_probes * length) if length else space.zero()
        scaled = wide_zeros(space)
        space.accumulate(scaled, quotient, factor)
        return scaled


def check_direction(norm: float) -> None:
    """The mean gradient of the anchors has a direction.

    Raises:
        ValueError: its norm is 0 or not finite.
    """
    if not (math.isfinite(norm) and norm > 0):
        raise ValueError(
            f"tune: expected a finite mean gradient other than 0 of the micro-batches before the probes; got norm "
            f"{norm}; check the losses, or pass a GradScaler where float16 gradients vanish"
        )


def check_probes(norm: float, num: int) -> None:
    """The probes' gradients are finite.

    Raises:
        ValueError: the norm of their sum is not.
    """
    if not math.isfinite(norm):
        raise ValueError(
            f"tune: expected finite gradients of the probes, the last micro-batches ({num} of them); got norm {norm}; check "
            "their losses, or lower the scale of the GradScaler where float16 gradients overflow"
        )


def wide_zeros(space: ParamSpace) -> Vector:
    """Zeros in float32 or wider."""
    return [
        torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32), requires_grad=False)
        for p in space.params
    ]
