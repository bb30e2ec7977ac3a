"""`prefix`: every micro-batch is compared with all before it.

    term = sum_i 2 (i - 1) / (k (k - 1)) s H_i w_i,      i = 2..k

Every pair is looked at once, in 2k - 1 passes (central: 3k - 2). Averaged over all orders of the micro-batches, with
normalize="none", it is the gradient of A.
"""

from __future__ import annotations

from torch import Tensor

from gradalign.estimators.comparison import compare
from gradalign.estimators.schedule import Schedule
from gradalign.estimators.step import Step
from gradalign.passes import Closure
from gradalign.space import Vector


class Prefix(Schedule):
    """The sum of the gradients so far is the reference, and grows."""

    def __init__(self, step: Step, total: Vector) -> None:
        super().__init__(step)
        unit = step.settings.objective.unit
        self.total = total
        self.term: Vector = step.space.zeros()
        self.units: Vector | None = step.space.zeros() if unit or step.settings.telemetry else None
        self.reference: Vector = self.units if unit and self.units is not None else total

    def visit(self, closure: Closure) -> Tensor:
        """Base pass; from the second micro-batch on, displaced passes."""
        step, num, before = self.step, self.step.num, self.num_visited
        if before:
            scale = (step.space.scalar(1.0) if step.settings.objective.unit else step.own_scale) / before
            omega = 2 * before / (num * (num - 1))
            loss = compare(step, closure, self.reference, scale, omega, self.term, self.keep)
        else:
            loss, g = step.passes.isolated(closure)
            self.keep(g)
        self.num_visited += 1
        return loss

    def keep(self, g: Vector, sums: Tensor | None = None) -> None:
        """Add the gradient to the sums."""
        square = self.step.record(g, self.total, self.num_visited)
        if self.units is not None:
            self.step.record_unit(g, square, self.units, self.num_visited)

    def finish(self) -> dict[str, Tensor]:
        """Fill `.grad`."""
        return self.step.close(self.total, self.term)
