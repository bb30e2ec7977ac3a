"""Paired training: AdamW and gradalign side by side, from the same weights, on the same batches, with the same dropout.

The two arms alternate step by step, so that other load on the machine slows both and their times can be compared. Each arm
has its own random number generator state, seeded alike, which only its own steps advance.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from gradalign.cli.demo.equal_time import cost_factor, extra_steps
from gradalign.cli.demo.reviews.arm import Arm
from gradalign.cli.workload.model import Batch


class Arms(NamedTuple):
    """The two models in training that are compared."""

    plain: Arm
    aligned: Arm

    @property
    def cost_factor(self) -> float:
        """See `cost_factor`."""
        return cost_factor(self.plain.curve.seconds, self.aligned.curve.seconds)


class Progress(Protocol):
    """What training reports its progress to."""

    def add_steps(self, steps: int) -> None:
        """Adds steps to the total."""

    def advance(self) -> None:
        """One step is done: of both arms, or of AdamW alone."""


def train_equal_steps(
    arms: Arms, steps: int, data: Iterator[Sequence[Batch]], test: Sequence[Batch], progress: Progress
) -> None:
    """Both arms take every step on the same micro-batches; which arm goes first alternates."""
    evaluated = evaluation_steps(steps)
    for step in range(steps):
        micro_batches = next(data)
        for arm in arms if step % 2 == 0 else reversed(arms):
            arm.step(micro_batches)
            if step + 1 in evaluated:
                arm.evaluate(test)
        progress.advance()


def train_equal_time(arms: Arms, data: Iterator[Sequence[Batch]], test: Sequence[Batch], progress: Progress) -> None:
    """AdamW takes as many further steps as fit into the extra time of gradalign, and is evaluated once more."""
    plain, aligned = arms
    extra = extra_steps(len(aligned.curve.seconds), arms.cost_factor)
    progress.add_steps(extra)
    for _ in range(extra):
        plain.step(next(data))
        progress.advance()
    if extra:
        plain.evaluate(test)


def evaluation_steps(steps: int, points: int = 4) -> set[int]:
    """Up to `points` evenly spaced steps; the last step is always one of them."""
    return {max(1, round(steps * (i + 1) / points)) for i in range(points)}
