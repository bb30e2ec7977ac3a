"""Seconds of a step against plain AdamW's, in turns."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from benchmarks.steps.task import Stepper
from benchmarks.timing import Budget, HostClock, interleaved, paired_ratios, quartiles


def in_turns(
    plain: Stepper, method: Stepper, data: Iterator[list[Any]], device: torch.device, seconds: float, period: int = 1
) -> dict[str, Any]:
    """Both do a step on the same micro-batches, the first to go alternates, until the time is up.

    Args:
        plain: the loop everything is compared with.
        method: what is measured; may be `plain` itself.
        data: micro-batches of one step after the other.
        device: waited for before the clock is read.
        seconds: how long; at least 3 rounds and at most 100 are done.
        period: steps of the method in a round, whose mean counts.

    Returns:
        What a row says of the rounds, see `figures`.
    """
    micro_batches: list[Any] = []

    def draw() -> None:
        micro_batches[:] = next(data)

    def plain_step() -> None:
        plain.step(micro_batches)

    def method_steps() -> None:
        for _ in range(period):
            method.step(micro_batches)

    calls = {"plain": plain_step, "method": method_steps}
    taken = interleaved(calls, HostClock(device), Budget(seconds), before_round=draw)
    return figures(taken["plain"], [total / period for total in taken["method"]])


def figures(plain: Sequence[float], method: Sequence[float]) -> dict[str, Any]:
    """Medians of both, and the paired ratio with its quartiles and range, from seconds a step, one entry a round."""
    found = paired_ratios(plain, method)
    low, middle, high = quartiles(found)
    return {
        "rounds": len(found),
        "seconds": statistics.median(method),
        "plain_seconds": statistics.median(plain),
        "ratio": middle,
        "ratio_quartiles": [low, high],
        "ratio_range": [min(found), max(found)],
    }
