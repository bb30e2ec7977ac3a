from __future__ import annotations

import gc

import pytest
import torch

from benchmarks import timing
from benchmarks.timing import Budget, EventClock, HostClock, interleaved, paired_ratios, quartiles

CPU = HostClock(torch.device("cpu"))


@pytest.fixture
def passing(monkeypatch):
    """Makes a call that takes so many seconds of a clock that only such calls move, and logs its name."""
    now, log = [0.0], []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def make(name, seconds):
        def call():
            now[0] += seconds
            log.append(name)

        return call

    return make, log


def test_every_call_is_timed_once_a_round_and_the_order_alternates(passing):
    make, log = passing
    taken = interleaved({name: make(name, s) for name, s in (("a", 1.0), ("b", 2.0), ("c", 3.0))}, CPU, Budget(0, 2))
    assert log == ["a", "b", "c", "c", "b", "a"]
    assert taken == {"a": [1.0, 1.0], "b": [2.0, 2.0], "c": [3.0, 3.0]}


def test_what_comes_before_a_round_is_not_timed(passing):
    make, log = passing
    taken = interleaved({"a": make("a", 1.0)}, CPU, Budget(0, 2), before_round=make("before", 5.0))
    assert log == ["before", "a", "before", "a"]
    assert taken == {"a": [1.0, 1.0]}


@pytest.mark.parametrize(("budget", "rounds"), [(Budget(0, 5), 5), (Budget(7.5), 7), (Budget(1e9, 1, 9), 9)])
def test_the_budget_bounds_the_rounds(passing, budget, rounds):
    make, _ = passing
    assert len(interleaved({"a": make("a", 1.0)}, CPU, budget)["a"]) == rounds


def test_the_collector_is_off_while_measuring_and_put_back_after_an_error():
    assert gc.isenabled()

    def fail():
        assert not gc.isenabled()
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        interleaved({"a": fail}, CPU, Budget(0))
    assert gc.isenabled()


def test_the_hosts_clock_measures_a_call(passing):
    make, _ = passing
    assert CPU.start(make("a", 2.5))() == 2.5


def test_quartiles_and_paired_ratios():
    assert paired_ratios([1.0, 2.0], [3.0, 3.0]) == [3.0, 1.5]
    assert quartiles([1.0, 2.0, 4.0]) == (1.5, 2.0, 3.0)
    assert quartiles([3.0]) == (3.0, 3.0, 3.0)


class FakeDevice:
    """A host and a device with their own clocks; the device takes what is in its queue in turn, as soon as it is there."""

    SPEED = 1.5e9  # cycles per second

    def __init__(self):
        self.host = self.device = 0.0
        self.idle_sleeps = 0  # how many more have the clock of an idle device

    def enqueue(self, host_seconds, device_seconds):
        self.host += host_seconds
        self.device = max(self.device, self.host) + device_seconds

    def sleep(self, cycles):
        self.enqueue(1e-6, cycles / (self.SPEED / 6 if self.idle_sleeps > 0 else self.SPEED))
        self.idle_sleeps -= 1

    def synchronize(self):
        self.host = max(self.host, self.device)

    def event(self, enable_timing):
        return FakeEvent(self)


class FakeEvent:
    def __init__(self, device):
        self.device = device

    def record(self):
        self.device.enqueue(1e-6, 0)
        self.time = self.device.device

    def elapsed_time(self, end):
        return 1e3 * (end.time - self.time)


@pytest.fixture
def device(monkeypatch):
    made = FakeDevice()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: made.host)
    monkeypatch.setattr(torch.cuda, "Event", made.event)
    monkeypatch.setattr(torch.cuda, "_sleep", made.sleep)
    monkeypatch.setattr(torch.cuda, "synchronize", made.synchronize)
    return made


@pytest.mark.parametrize("idle_sleeps", [0, 3])
@pytest.mark.parametrize(("launch", "kernel"), [(5e-6, 1e-6), (1e-3, 1e-6), (5e-6, 1e-3)])
def test_events_measure_kernels_and_not_launches(device, launch, kernel, idle_sleeps):
    device.idle_sleeps = idle_sleeps
    calls = []

    def call():
        calls.append(device.host)
        for _ in range(500):
            device.enqueue(launch, kernel)

    other = lambda: device.enqueue(1e-6, 2e-6)  # noqa: E731
    taken = interleaved({"call": call, "other": other}, EventClock(), Budget(0, 3))
    assert taken["call"] == pytest.approx([500 * kernel] * 3)
    assert taken["other"] == pytest.approx([2e-6] * 3)
    assert len(calls) == 5  # two of them to see how long its launches take
