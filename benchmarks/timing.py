"""Seconds of several calls, measured in turns so that whatever else the machine does hits all of them."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol, TypeVar

import torch

Call = Callable[[], object]
Key = TypeVar("Key", bound=Hashable)


class Clock(Protocol):
    """Measures one call."""

    def start(self, call: Call) -> Callable[[], float]:
        """Runs the call; the returned function gives its seconds once `wait` has returned."""

    def wait(self) -> None:
        """Returns when the device has nothing left to do."""


class HostClock:
    """The host's clock, read when the device is idle: includes what the host does before it launches kernels.

    Args:
        device: waited for before every reading.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def now(self) -> float:
        """Seconds since some fixed time."""
        self.wait()
        return time.perf_counter()

    def start(self, call: Call) -> Callable[[], float]:
        """Runs the call to its end."""
        begun = self.now()
        call()
        passed = self.now() - begun
        return lambda: passed

    def wait(self) -> None:
        """Returns when the device has nothing left to do."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


class EventClock:
    """Events of a CUDA device: kernel time without the host's."""

    def start(self, call: Call) -> Callable[[], float]:
        """Puts the call between two events in the device's queue."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        return lambda: begin.elapsed_time(end) / 1e3

    def wait(self) -> None:
        """Returns when the device has nothing left to do."""
        torch.cuda.synchronize()


class Budget(NamedTuple):
    """How long to measure: no round begins that would end after `seconds`, unless fewer than `least_rounds` are done."""

    seconds: float
    least_rounds: int = 3
    most_rounds: int = 100


def interleaved(
    calls: Mapping[Key, Call], clock: Clock, budget: Budget, before_round: Call | None = None
) -> dict[Key, list[float]]:
    """Seconds of every call, one entry a round; the order is reversed every other round.

    Args:
        calls: what is measured, each once a round.
        clock: how.
        budget: how many rounds.
        before_round: called before each round, not timed.
    """
    taken: dict[Key, list[float]] = {key: [] for key in calls}
    begun, last_round = time.perf_counter(), 0.0
    with _collector_off():
        for number in range(budget.most_rounds):
            start = time.perf_counter()
            if number >= budget.least_rounds and start - begun + last_round > budget.seconds:
                break
            if before_round is not None:
                before_round()
            order = list(calls)[:: 1 if number % 2 == 0 else -1]
            pending = {key: clock.start(calls[key]) for key in order}
            clock.wait()
            for key, seconds in pending.items():
                taken[key].append(seconds())
            last_round = time.perf_counter() - start
    return taken


@contextmanager
def _collector_off() -> Iterator[None]:
    """No garbage collection during a measurement."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def paired_ratios(base: Sequence[float], other: Sequence[float]) -> list[float]:
    """Other / base of every round."""
    return [o / b for b, o in zip(base, other, strict=True)]


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """25%, median, 75%."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high
