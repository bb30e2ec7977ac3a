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

LEAST_SLEEP = 5e-5  # seconds of the device: for the first event, whatever the host does between two launches


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
    """Events of a CUDA device: the time of a call's kernels one after the other, without that of their launches.

    The device sleeps before the first event for twice as long as the host takes to launch the call, so that the kernels wait
    in the queue. Of a call with more kernels than the queue has places (about a thousand), whose launches are slower than
    they are, the end is measured with the launches.
    """

    def __init__(self) -> None:
        self._launching: dict[Call, float] = {}
        self._frequency: float | None = None

    def start(self, call: Call) -> Callable[[], float]:
        """Puts the call between two events in the device's queue; twice more before that, the first time it is given."""
        if call not in self._launching:
            self._launching[call] = min(self._seconds_of_the_host(call) for _ in range(2))
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(int((2 * self._launching[call] + LEAST_SLEEP) * self._cycles_per_second()))
        begin.record()
        call()
        end.record()
        return lambda: begin.elapsed_time(end) / 1e3

    def wait(self) -> None:
        """Returns when the device has nothing left to do."""
        torch.cuda.synchronize()

    def _seconds_of_the_host(self, call: Call) -> float:
        self.wait()  # a full queue would make the host wait too
        begun = time.perf_counter()
        call()
        passed = time.perf_counter() - begun
        self.wait()
        return passed

    def _cycles_per_second(self) -> float:
        """The highest of some readings: a device that was idle takes a while to come to the clock that it measures at."""
        if self._frequency is None:
            self._frequency = max(self._cycles_of_a_sleep() for _ in range(10))
        return self._frequency

    def _cycles_of_a_sleep(self) -> float:
        cycles = 10_000_000  # several ms: no launch is as long
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        torch.cuda._sleep(cycles)
        end.record()
        self.wait()
        return cycles / (begin.elapsed_time(end) / 1e3)


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
