"""No term: the plain accumulation loop, which may still measure agreement."""

from __future__ import annotations

from torch import Tensor

from gradalign.engine.passes import Closure
from gradalign.engine.schedule import Schedule
from gradalign.engine.step import Step
from gradalign.engine.sums import Sums


class Plain(Schedule):
    """gbar alone, in k passes; bit for bit what the plain loop computes."""

    replays = False

    def __init__(self, step: Step, total: list) -> None:
        super().__init__(step)
        self._sums = Sums(step, total)

    def visit(self, closure: Closure) -> Tensor:
        """One base pass; with telemetry its gradient is looked at before it is added."""
        if not self.step.settings.telemetry:
            self.num_visited += 1
            more = self.num_visited < self.step.num
            return self.step.passes.base_pass(closure, self._sums.total, more=more)
        loss, g = self.step.passes.isolated_pass(closure)
        self._sums.add(g)
        return loss

    def finish(self) -> dict[str, Tensor]:
        """The sum is the gradient."""
        self.step.close(self._sums.total, None)
        return {}
