"""Gradients of the probes at theta and on both sides of it, along the mean gradient of the anchors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradalign.engine import validation
from gradalign.engine.passes import Closure, ReplayState
from gradalign.engine.schedule import Schedule
from gradalign.engine.space import ParamSpace, Vector
from gradalign.engine.step import Step
from gradalign.estimators.split import num_probes


@dataclass(frozen=True)
class Pair:
    """Sums over the probes' gradients at theta + delta and theta - delta, d being the displacement asked for.

    Attributes:
        plus: at theta + delta, as stored (times 1/k and the loss scale).
        minus: at theta - delta.
        length: delta . d / ||d||, the length achieved along d; 0 where nothing moved.
        cosine: between delta and d.
        kept: ||delta|| / ||d||.
        moved: share of the elements that differ from theta.
    """

    plus: Vector
    minus: Vector
    length: float
    cosine: float
    kept: float
    moved: float


class Differences(Schedule):
    """Base passes of all micro-batches, then displaced ones of the probes for as many radii as are asked for.

    Every evaluation of a probe starts from the random numbers and buffers of its base pass. Sums are kept in float32 or wider,
    so that the error measured is that of the gradients. The step it belongs to is never completed.

    Args:
        step: the step.
        total: becomes the sum of the anchors' gradients.
        probe_fraction: share of the micro-batches that are probes, as in `split`.
    """

    needs_all = True

    def __init__(self, step: Step, total: Vector, probe_fraction: float) -> None:
        super().__init__(step)
        self.m = num_probes(step.num, probe_fraction)
        self.anchors: Vector = total
        self.units: Vector = step.space.zeros()
        self.base: Vector = wide_zeros(step.space)
        self.starts: list[ReplayState] = []
        self.probes: list[Closure] = []
        self.one = step.space.scalar(1.0)

    @property
    def num_anchors(self) -> int:
        """How many micro-batches the probes are compared with."""
        return self.step.num - self.m

    def run(self, closures: Sequence[Closure]) -> list[Tensor]:
        """Base passes: the anchors' gradients and unit gradients, the probes' gradients."""
        step, losses = self.step, []
        for i, closure in enumerate(closures[: self.num_anchors]):
            loss, g = step.passes.isolated_pass(closure)
            step.record_unit(g, step.record(g, self.anchors, i), self.units, i)
            losses.append(loss)
        self.probes = list(closures[self.num_anchors :])
        for closure in self.probes:
            self.starts.append(step.passes.replay_state())
            loss, g = step.passes.isolated_pass(closure)
            step.space.accumulate(self.base, g, self.one)
            losses.append(loss)
        self.norm = step.space.norm_dot(self.anchors, over=step.space.measured)[0].sqrt()
        validation.usable_direction(float(self.norm))
        return losses

    def finish(self) -> dict[str, Tensor]:
        """There is no gradient to fill in."""
        raise AssertionError("a tuning step is never completed")

    def at(self, radius: float) -> Pair:
        """The probes at theta +- delta, delta being what the dtype represents of radius x^, x the sum over the anchors."""
        step = self.step
        sums = step.displacement.displace(self.anchors, radius / self.norm)
        moved = step.displacement.num_moved()
        plus = self._far()
        step.displacement.reflect()
        minus = self._far()
        step.displacement.restore()
        delta_d, d_d, delta_delta = sums.tolist()
        numel = sum(step.space.params[i].numel() for i in step.space.measured if self.anchors[i] is not None)
        return Pair(
            plus,
            minus,
            length=delta_d / d_d**0.5 if delta_d > 0 else 0.0,
            cosine=delta_d / (d_d * delta_delta) ** 0.5 if delta_d > 0 else 0.0,
            kept=(delta_delta / d_d) ** 0.5,
            moved=int(moved) / numel,
        )

    def forward(self, pair: Pair) -> Vector:
        """Mean over the probes of [grad L_i(theta + delta) - grad L_i(theta)] / length: H x^."""
        return self._quotient(pair.plus, self.base, pair.length)

    def central(self, pair: Pair) -> Vector:
        """Mean over the probes of [grad L_i(theta + delta) - grad L_i(theta - delta)] / (2 length)."""
        return self._quotient(pair.plus, pair.minus, 2 * pair.length)

    def apart(self, x: Vector, y: Vector) -> float:
        """||x - y|| / ||y||; 0 where both are 0."""
        space = self.step.space
        difference = wide_zeros(space)
        space.combine(difference, x, y, self.one, -self.one)
        ours, theirs = (float(space.norm_dot(v)[0].sqrt()) for v in (difference, y))
        return ours / theirs if theirs else (float("inf") if ours else 0.0)

    def mean_gradient_norm(self) -> float:
        """||gbar||."""
        everything = wide_zeros(self.step.space)
        self.step.space.accumulate(everything, self.anchors, self.one)
        self.step.space.accumulate(everything, self.base, self.one)
        return float(self.step.space.norm_dot(everything)[0].sqrt() / self.step.loss_scale)

    def _far(self) -> Vector:
        total = wide_zeros(self.step.space)
        for closure, start in zip(self.probes, self.starts, strict=True):
            start.put_back()
            self.step.space.accumulate(total, self.step.passes.again(closure), self.one)
        return total

    def _quotient(self, x: Vector, y: Vector, length: float) -> Vector:
        space, quotient = self.step.space, wide_zeros(self.step.space)
        space.combine(quotient, x, y, self.one, -self.one)
        factor = self.step.own_scale / (self.m * length) if length else space.scalar(0.0)
        scaled = wide_zeros(space)
        space.accumulate(scaled, quotient, factor)
        return scaled


def wide_zeros(space: ParamSpace) -> Vector:
    """Zeros in float32 or wider."""
    return [
        torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32), requires_grad=False)
        for p in space.params
    ]
