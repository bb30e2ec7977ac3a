"""Seconds of a step against plain AdamW's, in turns."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.steps.task import Stepper

LEAST_ROUNDS, MOST_ROUNDS = 3, 100


@dataclass(frozen=True)
class Timing:
    """Seconds per step of both, one entry a round."""

    plain: list[float]
    method: list[float]

    def as_dict(self) -> dict[str, Any]:
        """What a row says: medians, the paired ratio with its quartiles, and the ratios themselves."""
        found = ratios(self.plain, self.method)
        low, middle, high = quartiles(found)
        return {
            "rounds": len(found),
            "seconds": statistics.median(self.method),
            "plain_seconds": statistics.median(self.plain),
            "ratio": middle,
            "ratio_quartiles": [low, high],
            "ratio_range": [min(found), max(found)],
        }


def ratios(plain: Sequence[float], method: Sequence[float]) -> list[float]:
    """Method / plain of every round."""
    return [m / p for p, m in zip(plain, method, strict=True)]


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """25%, median, 75%."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def in_turns(
    plain: Stepper, method: Stepper, data: Iterator[list[Any]], device: torch.device, seconds: float, period: int = 1
) -> Timing:
    """Both do a step on the same micro-batches, the first to go alternates, until the time is up.

    Args:
        plain: the loop everything is compared with.
        method: what is measured; may be `plain` itself.
        data: micro-batches of one step after the other.
        device: waited for before the clock is read.
        seconds: how long; at least 3 rounds and at most 100 are done.
        period: steps of the method in a round, whose mean counts.
    """
    timing = Timing([], [])
    begun = time.perf_counter()
    collecting = gc.isenabled()
    gc.disable()
    try:
        while len(timing.plain) < LEAST_ROUNDS or (
            len(timing.plain) < MOST_ROUNDS and _next_fits(timing, begun, seconds, period)
        ):
            micro_batches = next(data)
            for who in ("plain", "method") if len(timing.plain) % 2 == 0 else ("method", "plain"):
                if who == "plain":
                    timing.plain.append(_seconds(plain, [micro_batches], device))
                else:
                    timing.method.append(_seconds(method, [micro_batches] * period, device))
    finally:
        if collecting:
            gc.enable()
    return timing


def _next_fits(timing: Timing, begun: float, seconds: float, period: int) -> bool:
    round_takes = timing.plain[-1] + period * timing.method[-1]
    return time.perf_counter() - begun + round_takes <= seconds


def _seconds(stepper: Stepper, steps: list[list[Any]], device: torch.device) -> float:
    begun = now(device)
    for micro_batches in steps:
        stepper.step(micro_batches)
    return (now(device) - begun) / len(steps)


def now(device: torch.device) -> float:
    """The clock, once the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
