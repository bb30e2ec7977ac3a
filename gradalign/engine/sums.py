"""The gradients of the micro-batches so far, added up."""

from __future__ import annotations

from gradalign.engine.space import Vector
from gradalign.engine.step import Step


class Sums:
    """The sum of the gradients, and that of the unit gradients where the objective or telemetry needs it.

    Attributes:
        total: sum of gradients; the vector that becomes `.grad`.
        units: sum of unit gradients, None where nobody needs it.
        reference: the one of the two that the objective compares with.
    """

    def __init__(self, step: Step, total: Vector) -> None:
        self._step = step
        self._num = 0
        unit = step.settings.objective.unit
        self.total = total
        self.units: Vector | None = step.space.zeros() if unit or step.settings.telemetry else None
        self.reference: Vector = self.units if unit and self.units is not None else total

    def add(self, g: Vector, total: Vector | None = None, num_before: int | None = None) -> None:
        """Add an isolated gradient, and note its products with those before it.

        Args:
            g: the gradient as it is stored.
            total: the sum it goes into, where there are several.
            num_before: how many are in that sum, where not all came through here.
        """
        into, before = (self.total if total is None else total), (self._num if num_before is None else num_before)
        square = self._step.record(g, into, before)
        if self.units is not None:
            self._step.record_unit(g, square, self.units, self._num)
        self._num += 1
