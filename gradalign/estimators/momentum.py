"""`momentum`: every micro-batch is evaluated once, displaced against the running mean of past gradients.

    .grad = mean_i g_i(theta - weight v^) = gbar - weight H v^ + O(weight^2),      v = running mean (norm: minus it)

The alignment of these micro-batches with past ones, at no extra pass: k passes, 2 copies beside plain training, 1 where an
optimizer's first moment is the mean. It is biased by the age of the mean. Nesterov's look-ahead is this with its length tied to
the learning rate; Momentum-SAM (Becker et al. 2024, arXiv:2401.12033) has the opposite sign. Buffers and random numbers move
as in a base pass, and the loss is that of the displaced point.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from gradalign.engine.passes import Closure
from gradalign.engine.plain import Plain
from gradalign.engine.schedule import Schedule
from gradalign.engine.space import ParamSpace, Vector
from gradalign.engine.step import Step
from gradalign.engine.sums import Sums

DECAY = 0.9


class RunningMean:
    """m <- 0.9 m + 0.1 g over the steps, uncorrected: only its direction is used."""

    def __init__(self) -> None:
        self.mean: Vector = []
        self._params: list[Parameter] | None = None  # whose mean it is; None: by position, after a load

    def over(self, space: ParamSpace) -> Vector:
        """The mean for these parameters, where they are; zero for those that it has not seen."""
        if self._params is None:
            if len(self.mean) != len(space.params):
                return space.zeros()
            pairs = list(zip(self.mean, space.params, strict=True))
            if any(m is not None and m.shape != p.shape for m, p in pairs):
                return space.zeros()
            known = self.mean
        else:
            means = {id(p): m for p, m in zip(self._params, self.mean, strict=True)}
            known = [means.get(id(p)) for p in space.params]
        # A checkpoint may have been loaded to the CPU.
        self.mean = [m if m is None else m.to(p.device) for m, p in zip(known, space.params, strict=True)]
        self._params = space.params
        return self.mean

    def update(self, space: ParamSpace, gradient: Vector, loss_scale: Tensor) -> None:
        """Take in a gradient, unless it is not finite: a step that a scaler skips leaves the mean as it is."""
        mean = self.over(space)
        finite = space.norm_dot(gradient)[0].isfinite()
        keep, add = torch.where(finite, DECAY, 1.0), torch.where(finite, (1 - DECAY) / loss_scale, 0.0)
        space.combine(mean, mean, mean, keep.double(), space.scalar(0.0))
        space.accumulate(mean, gradient, add.double())
        self.mean, self._params = mean, space.params

    def state_dict(self) -> dict[str, Any]:
        """The mean."""
        return {"mean": list(self.mean)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with a saved mean."""
        self.mean = [None if m is None else m.clone() for m in state.get("mean", [])]
        self._params = None


class InactiveMomentum(Plain):
    """The plain loop of a step in which the term rests: its gradient is one of the past all the same."""

    def __init__(self, step: Step, total: Vector, remember: RunningMean) -> None:
        super().__init__(step, total)
        self._remember = remember

    def finish(self) -> dict[str, Tensor]:
        """Fill `.grad` and remember it."""
        found = super().finish()
        self._remember.update(self.step.space, self._sums.total, self.step.loss_scale)
        return found


class Momentum(Schedule):
    """One displaced pass a micro-batch, which counts as its base pass."""

    def __init__(self, step: Step, total: Vector, mean: Vector, remember: RunningMean | None) -> None:
        super().__init__(step)
        self.sums = Sums(step, total)
        self.mean = mean
        self.remember = remember

    def run(self, closures: Sequence[Closure]) -> list[Tensor]:
        """Displace once for all."""
        self.displace()
        losses = [self.base_pass(closure) for closure in closures]
        self.step.displacement.restore()
        return losses

    def visit(self, closure: Closure) -> Tensor:
        """DisplacementInfo during the pass, at theta in between."""
        if self.num_visited:
            self.step.displacement.step_in()
        else:
            self.displace()
        loss = self.base_pass(closure)
        self.step.displacement.step_out()
        return loss

    def displace(self) -> None:
        """theta <- theta - weight v^."""
        step = self.step
        norm = step.space.norm_dot(self.mean, over=step.space.measured)[0].sqrt()
        sign = step.settings.objective.alpha
        scale = torch.where(norm.isfinite() & (norm > 0), -sign * step.weight / norm, 0.0)
        step.shift(None, self.mean, scale)

    def base_pass(self, closure: Closure) -> Tensor:
        """The pass of a micro-batch, and its gradient's norm where it is wanted."""
        step = self.step
        if self.sums.units is None:
            loss = step.passes.base_pass(closure, self.sums.total)
        else:
            loss, g = step.passes.isolated_pass(closure)
            self.sums.add(g)
        self.num_visited += 1
        return loss

    def finish(self) -> dict[str, Tensor]:
        """Fill `.grad` and remember it."""
        self.step.displacement.restore()
        found = self.step.close(self.sums.total, None)
        if self.remember is not None:
            self.remember.update(self.step.space, self.sums.total, self.step.loss_scale)
        return found
