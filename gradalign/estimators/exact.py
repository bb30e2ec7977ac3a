"""`exact`: the term by double backward, every micro-batch against all others. The oracle, and the naive baseline.

    term = 1 / k sum_i s H_i w_i,      H_i w_i = grad (g_i . w_i) with w_i held constant

The graphs of all k first backwards are kept, and every operation must be twice differentiable (fused attention is not).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gradalign.engine.comparison import aim_at_others
from gradalign.engine.estimator import Estimator
from gradalign.engine.losses import dense_gradients
from gradalign.engine.passes import Closure, hooks_applied
from gradalign.engine.schedule import Schedule
from gradalign.engine.space import Vector
from gradalign.engine.step import Step
from gradalign.engine.sums import Sums


@dataclass(frozen=True)
class Exact(Estimator):
    """Every micro-batch against all others, by double backward."""

    name = "exact"

    def make(self, step: Step, total: Vector) -> Schedule:
        """k passes with graphs, then k through their gradients."""
        return ExactSchedule(step, total)


class ExactSchedule(Schedule):
    """One differentiable pass a micro-batch; then one double backward for each."""

    differentiates = True
    several_ranks = False
    replays = False

    def __init__(self, step: Step, total: Vector) -> None:
        super().__init__(step)
        self.sums = Sums(step, total)
        self.graphs: list[Vector] = []
        self.hooked: list[Vector] = []  # the gradients as hooks make them, where there are some

    def visit(self, closure: Closure) -> Tensor:
        """The loss and its gradient, with the graph of the gradient."""
        loss, graph = self.step.passes.differentiable(closure, self.step.loss_scale)
        dense_gradients(graph)
        self.graphs.append(graph)
        g = [None if t is None else t.detach() for t in graph]
        if self.step.hooked:
            g = hooks_applied(self.step.space.params, g)
            self.hooked.append(g)
        self.sums.add([None if t is None else t.clone() for t in g])
        return loss

    def finish(self) -> dict[str, Tensor]:
        """Differentiate the gradients along their directions and fill `.grad`."""
        step, term = self.step, self.step.new_term()
        start = step.passes.replay_state()  # a checkpoint runs its forward once more for a second derivative
        while self.graphs:
            graph = self.graphs.pop(0)
            g: Vector = self.hooked.pop(0) if self.hooked else [None if t is None else t.detach() for t in graph]
            aim = aim_at_others(step, self.sums.reference, g)
            direction = step.settings.normalize == "direction"
            length = aim.eps * aim.norm if direction else aim.eps  # radius v^ or eps v: what the aim is in units of w
            w = self.combination(
                g, *(torch.where(length > 0, scale / length, 0.0) for scale in (aim.scale_x, aim.scale_y))
            )
            step.space.accumulate(
                term.vector, step.passes.differentiate_again(graph, w), step.space.scalar(1.0 if direction else 2.0)
            )
        start.put_back()
        step.close(self.sums.total, term)
        return {}

    def combination(self, g: Vector, a: Tensor, b: Tensor) -> Vector:
        """A x + b g on the measured parameters, x being the reference."""
        space = self.step.space
        w = space.zeros()
        for vector, scale in ((self.sums.reference, a), (g, b)):
            present = [i for i in space.measured if vector[i] is not None]
            space.accumulate(w, vector, scale, over=present)
        return w
