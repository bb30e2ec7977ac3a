"""No term: the plain accumulation loop, which may still measure agreement."""

from __future__ import annotations

from torch import Tensor

from gradalign.estimators.schedule import Schedule
from gradalign.estimators.step import Step
from gradalign.passes import Closure


class Plain(Schedule):
    """gbar alone, in k passes; bit for bit what the plain loop computes."""

    def __init__(self, step: Step, total: list) -> None:
        super().__init__(step)
        self._total = total
        self._units = step.space.zeros()

    def visit(self, closure: Closure) -> Tensor:
        """One base pass; with telemetry its gradient is looked at before it is added."""
        step, before = self.step, self.num_visited
        self.num_visited += 1
        if not step.settings.telemetry:
            return step.passes.base(closure, self._total)
        loss, g = step.passes.isolated(closure)
        step.record_unit(g, step.record(g, self._total, before), self._units, before)
        return loss

    def finish(self) -> dict[str, Tensor]:
        """The sum is the gradient."""
        return self.step.close(self._total, None)
