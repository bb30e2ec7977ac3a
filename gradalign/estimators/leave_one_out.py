"""`leave_one_out`: every micro-batch is compared with all others: exact for these k micro-batches.

    term = 1 / k sum_i s H_i w_i

The reference of micro-batch i is (sum - g_i) / (k - 1), so that it takes the sum of all gradients and g_i again. Where the
g_i are meanwhile: "device" (k + 1 copies beside plain training, 2k passes), "host" (pinned memory; 3 to 4 copies on the
device, 2k passes) or "recompute" (evaluated once more; 3 to 4 copies, 3k passes). Central differences cost k passes more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from torch import Tensor

from gradalign.engine.comparison import aim_at_others, displaced_passes, subtract_base
from gradalign.engine.estimator import Estimator
from gradalign.engine.passes import Closure, ReplayState
from gradalign.engine.schedule import Schedule
from gradalign.engine.space import Vector
from gradalign.engine.step import Step
from gradalign.engine.sums import Sums
from gradalign.engine.validation import one_of
from gradalign.estimators.by_source import SourcesLeaveOneOut, plain_by_source
from gradalign.estimators.gradient_store import GradientStore, fetched, stored


@dataclass(frozen=True)
class LeaveOneOut(Estimator):
    """Every micro-batch against all others.

    Attributes:
        gradients: where they are kept: "device", "host" (pinned memory) or "recompute".

    Raises:
        ValueError: another place.
    """

    name = "leave_one_out"
    by_source = True
    separates = True
    gradients: GradientStore = "device"

    def __post_init__(self) -> None:
        one_of("gradients", self.gradients, get_args(GradientStore))

    def make(self, step: Step, total: Vector) -> Schedule:
        """k base passes, then k displaced ones."""
        if step.sources is not None:
            return SourcesLeaveOneOut(step, total, step.sources, self.gradients)
        return LeaveOneOutSchedule(step, total, self.gradients)

    def make_inactive(self, step: Step, total: Vector) -> Schedule:
        """The plain loop; with telemetry it measures the agreement of sources."""
        return plain_by_source(step, total)


class LeaveOneOutSchedule(Schedule):
    """All base passes first; then every micro-batch is displaced along the gradients of the others."""

    needs_all = True

    def __init__(self, step: Step, total: Vector, gradients: GradientStore) -> None:
        super().__init__(step)
        self.sums = Sums(step, total)
        self.term = step.new_term()
        self.where = gradients
        self.stored: list[Vector] = []

    def run(self, closures: Sequence[Closure]) -> list[Tensor]:
        """k base passes, then the displaced ones."""
        passes, step = self.step.passes, self.step
        passes.local = step.separate
        losses: list[Tensor] = []
        starts: list[ReplayState] = []
        for closure in closures:
            starts.append(passes.replay_state())
            losses.append(self.base_pass(closure, more=len(losses) + 1 < len(closures)))
        end = passes.replay_state()
        end.leave_unused(starts)
        if step.separate and step.space.ranks is not None:  # the sum over the micro-batches of all ranks
            step.average(self.sums.reference, share=step.space.ranks.num)
        for i, closure in enumerate(closures):
            g = self.gradient(i, closure, starts[i])
            reference = self.sums.reference
            _, q = self.step.displace(aim_at_others(self.step, reference, g), reference, g)
            subtract_base(step, self.term, g, self.term.ratio(q), give=True)  # the first becomes the term
            del g
            displaced_passes(self.step, [closure], [starts[i]], self.term, q, more=i + 1 < len(closures))
        step.displacement.restore()
        end.put_back()
        return losses

    def finish(self) -> dict[str, Tensor]:
        """Fill `.grad`."""
        step = self.step
        if step.separate and step.space.ranks is not None and self.sums.reference is self.sums.total:
            total, share = self.sums.total, step.space.scalar(1 / step.space.ranks.num)
            step.space.combine(total, total, total, share, step.space.zero())
        self.step.close(self.sums.total, self.term)
        return {}

    def base_pass(self, closure: Closure, more: bool) -> Tensor:
        """Base pass of a micro-batch; `more` of them follow."""
        if self.where == "recompute" and self.sums.units is None:
            return self.step.passes.base_pass(closure, self.sums.total, more=more)
        loss, g = self.step.passes.isolated_pass(closure)
        if self.where != "recompute":
            self.stored.append(stored(g, self.sums.total, self.where))
        self.sums.add(g)
        return loss

    def gradient(self, i: int, closure: Closure, start: ReplayState) -> Vector:
        """The gradient of micro-batch i, from where it is."""
        if self.where == "recompute":
            self.step.displacement.restore()  # that of the micro-batch before is still there
            start.put_back()
            return self.step.passes.again(closure)
        g, self.stored[i] = self.stored[i], []
        return fetched(g, self.step.space, self.where)
