"""`symmetric`: the first and the second half of the micro-batches, each displaced along the mean gradient of the other.

    term = s / 2 (mean over the first half of H_i w(second) + mean over the second half of H_i w(first))

2k passes (central: 3k) and 3 copies beside plain training. For dot and norm, whose displacement is the same for all
micro-batches of a half. Averaged over all orders, with normalize="none", it is the gradient of A.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from gradalign.engine.comparison import displaced_passes, subtract_base
from gradalign.engine.estimator import Estimator
from gradalign.engine.passes import Closure, ReplayState
from gradalign.engine.schedule import Schedule
from gradalign.engine.space import Vector
from gradalign.engine.step import Step
from gradalign.engine.sums import Sums


@dataclass(frozen=True)
class Symmetric(Estimator):
    """Each half of the micro-batches against the other."""

    name = "symmetric"
    own_direction = False

    def make(self, step: Step, total: Vector) -> Schedule:
        """2k passes."""
        return SymmetricSchedule(step, total)


class SymmetricSchedule(Schedule):
    """Two sums of gradients, one a half."""

    needs_all = True

    def __init__(self, step: Step, total: Vector) -> None:
        super().__init__(step)
        self.halves: tuple[Vector, Vector] = (total, step.space.zeros())
        self.sums = Sums(step, total)
        self.term = step.new_term()

    def run(self, closures: Sequence[Closure]) -> list[Tensor]:
        """All base passes, then the displaced ones."""
        middle = (len(closures) + 1) // 2
        halves = [list(closures[:middle]), list(closures[middle:])]
        starts: tuple[list[ReplayState], list[ReplayState]] = ([], [])
        losses = []
        for half, own, begun in zip(halves, self.halves, starts, strict=True):
            for i, closure in enumerate(half):
                begun.append(self.step.passes.replay_state())
                losses.append(self.base_pass(closure, own, i, more=i + 1 < len(half)))
        end = self.step.passes.replay_state()
        end.leave_unused([*starts[0], *starts[1]])
        self.compare_sums([len(half) for half in halves])
        for here, there in ((0, 1), (1, 0)):
            self.displaced(halves[here], starts[here], self.halves[here], self.halves[there], len(halves[there]))
        end.put_back()
        return losses

    def base_pass(self, closure: Closure, own: Vector, num_before: int, more: bool) -> Tensor:
        """Base pass of a micro-batch; `more` of the same half follow."""
        if self.sums.units is None:
            return self.step.passes.base_pass(closure, own, more=more)
        loss, g = self.step.passes.isolated_pass(closure)
        self.sums.add(g, own, num_before)
        return loss

    def displaced(
        self, half: list[Closure], starts: list[ReplayState], own: Vector, other: Vector, num_other: int
    ) -> None:
        """term <- term + s / 2 mean_i H_i w over this half."""
        step = self.step
        sums = step.space.norm_dot(other, over=step.space.measured)
        _, q = step.displace(step.aim(sums, step.mean_scale(num_other)), other)
        gain = q * step.num / (2 * len(half))
        subtract_base(step, self.term, own, self.term.ratio(gain))
        displaced_passes(step, half, starts, self.term, gain, more=own is self.halves[0])
        step.displacement.restore()

    def compare_sums(self, nums: list[int]) -> None:
        """The products of every gradient of one half with every one of the other."""
        step = self.step
        cross = step.space.partial_norm_dot(*self.halves, over=step.space.measured)[1]
        step.agreement.dots(cross, nums[0] * nums[1], step.own_square)

    def finish(self) -> dict[str, Tensor]:
        """Put the halves together and fill `.grad`."""
        total, second = self.halves
        self.step.space.accumulate(total, second)
        self.step.close(total, self.term)
        return {}
