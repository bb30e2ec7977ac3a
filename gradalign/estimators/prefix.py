"""`prefix`: every micro-batch is compared with all before it.

    term = sum_i 2 (i - 1) / (k (k - 1)) s H_i w_i,      i = 2..k

Every pair is looked at once, in 2k - 1 passes (central: 3k - 2). Averaged over all orders of the micro-batches, with
normalize="none", it is the gradient of A.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gradalign.engine.comparison import compare
from gradalign.engine.estimator import Estimator
from gradalign.engine.passes import Closure
from gradalign.engine.schedule import Schedule
from gradalign.engine.space import Vector
from gradalign.engine.step import Step
from gradalign.engine.sums import Sums
from gradalign.engine.term import Term


@dataclass(frozen=True)
class Prefix(Estimator):
    """Every micro-batch against all before it."""

    name = "prefix"

    def make(self, step: Step, total: Vector) -> Schedule:
        """2k - 1 passes."""
        return PrefixSchedule(step, total)


class PrefixSchedule(Schedule):
    """The sum of the gradients so far is the reference, and grows."""

    def __init__(self, step: Step, total: Vector) -> None:
        super().__init__(step)
        self.sums = Sums(step, total)
        self.term = Term(step.space, largest=step.num - 1)

    def visit(self, closure: Closure) -> Tensor:
        """Base pass; from the second micro-batch on, displaced passes."""
        step, num, before = self.step, self.step.num, self.num_visited
        if before:
            omega = 2 * before / (num * (num - 1))
            reference, scale = self.sums.reference, step.mean_scale(before)
            loss = compare(
                step,
                closure,
                reference,
                scale,
                omega,
                self.term,
                lambda g, _: self.sums.add(g),
                more=before + 1 < num,
            )
        else:
            loss, g = step.passes.isolated_pass(closure)
            self.sums.add(g)
        self.num_visited += 1
        return loss

    def finish(self) -> dict[str, Tensor]:
        """Fill `.grad`."""
        self.step.close(self.sums.total, self.term)
        return {}
