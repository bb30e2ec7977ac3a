"""Guards against slow creep: passes, kernel calls, bytes, host work, and one ratio. No absolute time decides.

`make bench-guards`. Counts repeat exactly; the ratio is the median of interleaved rounds and has a wide bound.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

import gradalign
from benchmarks.guards.counts import dispatched, python_calls
from benchmarks.steps.kernels import KernelUse
from benchmarks.steps.measure import in_turns
from benchmarks.steps.task import Filling, Plain, Task
from benchmarks.steps.works import Loaded

CPU = torch.device("cpu")
K = 8


def loaded(width=64, layers=10):
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)))
    batches = list(torch.randn(K, 16, width))
    return Loaded(model, lambda net, x: net(x).square().mean(), [batches], "random")


def aligned(work, **options):
    return Filling(Task(work), gradalign.GradAlign(work.model, 0.001, **options))


def filled(work, **options):
    """Only the filling of `.grad`, without the optimizer."""
    task = Task(work)
    method = gradalign.GradAlign(work.model, 0.001, **options)

    def step():
        method.backward(task.loss_fn, work.steps[0])
        for p in work.model.parameters():
            p.grad = None

    return step


@pytest.mark.parametrize(
    ("options", "passes"),
    [
        ({}, 10),
        ({"probe_fraction": 1 / 8}, 9),
        ({"probe_fraction": 1 / 2}, 12),
        ({"difference": "central"}, 12),
        ({"estimator": "prefix"}, 15),
        ({"estimator": "leave_one_out"}, 16),
        ({"estimator": "momentum"}, 8),
    ],
    ids=str,
)
def test_passes(benchmark, options, passes):
    work = loaded()
    method = aligned(work, **options)
    task = Task(work)
    method._method.backward(task.loss_fn, work.steps[0])
    for p in work.model.parameters():
        p.grad = None
    assert task.num_losses == passes
    benchmark.extra_info["passes"] = task.num_losses
    benchmark.pedantic(method.step, (work.steps[0],), rounds=3)


# Copies of the parameters that a step reads and writes in kernels: DESIGN's table of ops times the calls of the schedule.
# Lean split: norm_dot of the anchors' gradient (1), perturb_ (2 + 2), restore_ (1 + 1), norm of .grad for the statistics (1).
@pytest.mark.parametrize(
    ("options", "calls", "copies"),
    [({}, 4, 8.0), ({"objective": "norm", "normalize": "none"}, 4, 8.0)],
    ids=str,
)
def test_lean_split_moves_eight_copies(benchmark, options, calls, copies):
    work = loaded()
    step = filled(work, **options)
    step()
    use = KernelUse(CPU)
    with use.watching():
        step()
    moved = sum(op["bytes"] for op in use.ops.values()) / work.parameter_bytes
    assert sum(op["calls"] for op in use.ops.values()) <= calls
    assert moved == pytest.approx(copies)
    benchmark.extra_info["copies"] = moved
    benchmark.pedantic(step, rounds=3)


def test_operations_of_a_step_are_one_a_parameter(benchmark):
    """Beside its passes a step costs a fixed number of operations, since one call takes all parameters, and their backups."""

    def own(layers):
        work = loaded(layers=layers)
        step = filled(work, backend="native")
        task = Task(work)

        def passes():
            for batch in [*work.steps[0], *work.steps[0][-2:]]:
                (task.loss_fn(batch) * 0.125).backward()
            for p in work.model.parameters():
                p.grad = None

        return sum(dispatched(step).values()) - sum(dispatched(passes).values())

    few, many = own(5), own(50)
    assert many - few <= 90  # parameters more
    assert few <= 200
    benchmark.extra_info["operations"] = few
    benchmark.pedantic(filled(loaded()), rounds=3)


def test_python_calls_of_a_step_grow_slowly_with_the_number_of_parameters(benchmark):
    def own(layers):
        work = loaded(layers=layers)
        task = Task(work)

        def passes():
            for batch in [*work.steps[0], *work.steps[0][-2:]]:
                (task.loss_fn(batch) * 0.125).backward()
            for p in work.model.parameters():
                p.grad = None

        return python_calls(filled(work)) - python_calls(passes)

    few, many = own(10), own(110)
    assert (many - few) / 200 <= 60  # a parameter, of which there are two a layer
    benchmark.extra_info["calls"] = few
    benchmark.pedantic(filled(loaded()), rounds=3)


def test_the_ratio_to_plain_is_near_that_of_the_passes(benchmark):
    """10 passes in place of 8 where passes take the time; the bound leaves 30% for a machine that is busy."""
    work = loaded(width=512, layers=6)
    plain, method = Plain(Task(work)), aligned(work)
    for stepper in (plain, method):
        stepper.step(work.steps[0])
    timing = in_turns(plain, method, work.forever(), CPU, seconds=5).as_dict()
    benchmark.extra_info |= {"ratio": timing["ratio"], "quartiles": timing["ratio_quartiles"]}
    benchmark.pedantic(method.step, (work.steps[0],), rounds=3)
    assert timing["ratio"] <= 1.25 * 1.3
