"""A method and plain take turns on the same micro-batches."""

from __future__ import annotations

import itertools

import pytest
import torch

from benchmarks import timing
from benchmarks.steps.against_plain import figures, in_turns

CPU = torch.device("cpu")


class Ticking:
    """A method that takes a fixed time of a clock that only it moves."""

    def __init__(self, name, takes, clock, log):
        self.name, self.takes, self.clock, self.log = name, takes, clock, log

    def step(self, micro_batches):
        self.clock[0] += self.takes
        self.log.append((self.name, micro_batches[0]))


@pytest.fixture
def clock(monkeypatch):
    time = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: time[0])
    return time


def run(clock, seconds, period=1, takes=(1.0, 2.0)):
    log: list = []
    plain, method = (Ticking(name, t, clock, log) for name, t in zip(("plain", "method"), takes, strict=True))
    return in_turns(plain, method, ([i] for i in itertools.count()), CPU, seconds, period), log


def test_both_take_turns_on_the_same_micro_batches_and_the_first_alternates(clock):
    found, log = run(clock, seconds=0)
    assert log == [("plain", 0), ("method", 0), ("method", 1), ("plain", 1), ("plain", 2), ("method", 2)]
    assert (found["plain_seconds"], found["seconds"], found["rounds"]) == (1.0, 2.0, 3)


def test_rounds_end_before_the_time_is_over(clock):
    assert run(clock, seconds=20)[0]["rounds"] == 6  # the seventh would end at 21


def test_rounds_have_a_maximum(clock):
    assert run(clock, seconds=1e9)[0]["rounds"] == 100


def test_a_period_is_averaged(clock):
    found, log = run(clock, seconds=0, period=5)
    assert found["ratio_range"] == [2.0, 2.0]
    assert sum(name == "method" for name, _ in log) == 15


def test_a_row_has_the_median_and_the_quartiles_of_paired_ratios():
    found = figures([1.0, 2.0, 4.0], [1.0, 4.0, 16.0])
    assert found["ratio"] == 2.0
    assert found["ratio_quartiles"] == [1.5, 3.0]
    assert found["ratio_range"] == [1.0, 4.0]
    assert (found["seconds"], found["plain_seconds"], found["rounds"]) == (4.0, 2.0, 3)
