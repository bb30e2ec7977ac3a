"""Paired training: AdamW and gradalign side by side, from the same weights, on the same batches, with the same dropout.

The two arms take turns step by step, so that their times are comparable: whatever else the machine does hits both. Each
arm keeps its own random stream, seeded alike, which its steps alone advance.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Protocol

from gradalign.cli.demo.arm import Arm, Batch


class Watcher(Protocol):
    """Who is told how far the training is."""

    def expect(self, steps: int) -> None:
        """So many further steps are to come."""

    def advance(self) -> None:
        """A step, of both arms or of AdamW's further ones, is done."""


def train(
    plain: Arm, aligned: Arm, steps: int, data: Iterator[Sequence[Batch]], test: Sequence[Batch], watcher: Watcher
) -> None:
    """Equal steps: both arms take every step on the same micro-batches, in turns; the first to go alternates."""
    marks = evaluation_steps(steps)
    for step in range(steps):
        micro_batches = next(data)
        for arm in (plain, aligned) if step % 2 == 0 else (aligned, plain):
            arm.step(micro_batches)
            if step + 1 in marks:
                arm.evaluate(test)
        watcher.advance()


def go_on(plain: Arm, aligned: Arm, data: Iterator[Sequence[Batch]], test: Sequence[Batch], watcher: Watcher) -> None:
    """Equal time: AdamW takes the further steps that gradalign's extra time pays for, and is evaluated once more."""
    extra = extra_steps(plain.curve.seconds, aligned.curve.seconds)
    watcher.expect(extra)
    for _ in range(extra):
        plain.step(next(data))
        watcher.advance()
    if extra:
        plain.evaluate(test)


def cost_factor(plain: Sequence[float], aligned: Sequence[float]) -> float:
    """The median over the steps of (seconds of the aligned step / seconds of the plain step beside it)."""
    return statistics.median(b / a for a, b in zip(plain, aligned, strict=False))


def extra_steps(plain: Sequence[float], aligned: Sequence[float]) -> int:
    """How many more plain steps fit into the time of as many aligned steps: steps * (cost factor - 1), rounded."""
    return max(0, round(len(aligned) * (cost_factor(plain, aligned) - 1)))


def evaluation_steps(steps: int, points: int = 4) -> set[int]:
    """Up to `points` steps, evenly spread, the last among them."""
    return {max(1, round(steps * (i + 1) / points)) for i in range(points)}
