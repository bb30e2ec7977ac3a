"""No term: the plain accumulation loop, which may still measure agreement."""

from __future__ import annotations

from torch import Tensor

from gradalign.estimators.schedule import Schedule
from gradalign.estimators.step import Step
from gradalign.estimators.sums import Sums
from gradalign.passes import Closure


class Plain(Schedule):
    """gbar alone, in k passes; bit for bit what the plain loop computes."""

    def __init__(self, step: Step, total: list) -> None:
        super().__init__(step)
        self._sums = Sums(step, total)

    def visit(self, closure: Closure) -> Tensor:
        """One base pass; with telemetry its gradient is looked at before it is added."""
        if not self.step.settings.telemetry:
            return self.step.passes.base(closure, self._sums.total)
        loss, g = self.step.passes.isolated(closure)
        self._sums.add(g)
        return loss

    def finish(self) -> dict[str, Tensor]:
        """The sum is the gradient."""
        return self.step.close(self._sums.total, None)
