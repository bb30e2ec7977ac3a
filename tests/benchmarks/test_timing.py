from __future__ import annotations

import gc
import itertools

import pytest
import torch

from benchmarks.steps import measure
from benchmarks.steps.measure import Timing, in_turns, quartiles

CPU = torch.device("cpu")


class Ticking:
    """A method that takes a fixed time of a clock that only it moves."""

    def __init__(self, name, takes, clock, log):
        self.name, self.takes, self.clock, self.log = name, takes, clock, log

    def step(self, micro_batches):
        self.clock[0] += self.takes
        self.log.append((self.name, micro_batches))


@pytest.fixture
def clock(monkeypatch):
    time = [0.0]
    monkeypatch.setattr(measure.time, "perf_counter", lambda: time[0])
    return time


def run(clock, seconds, period=1, takes=(1.0, 2.0)):
    log: list = []
    plain, method = (Ticking(name, t, clock, log) for name, t in zip(("plain", "method"), takes, strict=True))
    return in_turns(plain, method, itertools.count(), CPU, seconds, period), log


def test_both_take_turns_on_the_same_micro_batches_and_the_first_alternates(clock):
    timing, log = run(clock, seconds=0)
    assert log == [("plain", 0), ("method", 0), ("method", 1), ("plain", 1), ("plain", 2), ("method", 2)]
    assert (timing.plain, timing.method) == ([1.0] * 3, [2.0] * 3)


def test_rounds_end_before_the_time_is_over(clock):
    timing, _ = run(clock, seconds=20)
    assert len(timing.plain) == 6  # the seventh would end at 21


def test_rounds_have_a_maximum(clock):
    timing, _ = run(clock, seconds=1e9)
    assert len(timing.plain) == measure.MOST_ROUNDS


def test_a_period_is_averaged(clock):
    timing, log = run(clock, seconds=0, period=5)
    assert timing.method == [2.0] * 3
    assert sum(name == "method" for name, _ in log) == 15


def test_the_collector_is_put_back(clock):
    assert gc.isenabled()
    run(clock, seconds=0)
    assert gc.isenabled()


def test_a_row_has_the_median_and_the_quartiles_of_paired_ratios():
    found = Timing([1.0, 2.0, 4.0], [1.0, 4.0, 16.0]).as_dict()
    assert found["ratio"] == 2.0
    assert found["ratio_quartiles"] == [1.5, 3.0]
    assert found["ratio_range"] == [1.0, 4.0]
    assert (found["seconds"], found["plain_seconds"], found["rounds"]) == (4.0, 2.0, 3)


def test_quartiles_of_one_value():
    assert quartiles([3.0]) == (3.0, 3.0, 3.0)
