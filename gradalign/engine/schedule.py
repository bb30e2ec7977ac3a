"""A schedule of passes over the micro-batches of one step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor

from gradalign.engine.passes import Closure
from gradalign.engine.step import Step


class NeedsAllError(ValueError):
    """A step that is given one micro-batch at a time, with a schedule that needs all; nothing was touched."""


class Schedule(ABC):
    """Visits the micro-batches in order and leaves the step's gradient in `.grad`.

    Parameters equal theta whenever a method returns.

    Attributes:
        needs_all: it evaluates micro-batches again after later ones, so that all have to be there from the start. Such a
            schedule implements `run` and is refused by `accumulate`.
        differentiates: it calls autograd itself. A `backward=` of the user's would never be called and is refused.
        replays: it evaluates micro-batches at theta and displaced, and compares the two.
        reuses_graphs: its later passes go on from the graphs of earlier ones.
        several_ranks: it leaves every backward to `Passes`, so that each is averaged over the ranks.
    """

    needs_all = False
    differentiates = False
    replays = True
    reuses_graphs = False
    several_ranks = True

    def __init__(self, step: Step) -> None:
        self.step = step
        self.num_visited = 0

    def visit(self, closure: Closure) -> Tensor:
        """All passes of the next micro-batch; returns its base loss, detached."""
        raise AssertionError(f"{type(self).__name__} needs all micro-batches at once")

    @abstractmethod
    def finish(self) -> dict[str, Tensor]:
        """After the last visit: fills `.grad`; returns the fields of `AlignmentStats` that only the schedule knows."""

    def run(self, closures: Sequence[Closure]) -> list[Tensor]:
        """All micro-batches, where all are there from the start; a schedule may then choose a cheaper order of passes."""
        return [self.visit(closure) for closure in closures]
