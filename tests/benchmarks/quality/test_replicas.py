"""Many runs at once are the runs of the library, one by one, for every arm."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from benchmarks.quality import replicas
from benchmarks.quality.arms import ARMS, trials
from benchmarks.quality.task import Problem, Task
from benchmarks.quality.tasks.mixing import as_micro_batches
from benchmarks.quality.training import Job, run

VALUES = {
    "SAM": 0.3,
    "Reptile": 0.3,
    "FOMAML": 0.3,
    "weight decay": 0.3,
    "Fishr": 2.0,
    "IRMv1": 2.0,
    "Fishr, divided": 5.0,
}


def problem(hidden, seed, mixed):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(3, 12, 4, generator=generator)
    labels = (inputs[..., 0] + torch.randn(3, 12, generator=generator) > 0).float()
    train = [(x + s, y) for s, (x, y) in enumerate(zip(inputs, labels, strict=True))]
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)) if hidden else nn.Linear(4, 1)

    def loss_fn(model, batch):
        return nn.functional.binary_cross_entropy_with_logits(model(batch[0]).squeeze(1), batch[1])

    def evaluate(model):
        flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
        found = {f"p{i}": float(x) for i, x in enumerate(flat)}
        return {
            "validation": float(flat.sum()),
            "source_validation": -float(flat.sum()),
            "test": float(flat.norm()),
            **found,
        }

    return Problem(model, loss_fn, as_micro_batches(train, 6, seed, mixed), ("a", "b", "c"), evaluate)


def task(optimizer, hidden):
    return Task("t", "", partial(problem, hidden), True, optimizer, (0.1, 0.2), steps=4, evaluate_every=2, ramp=3)


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize(("optimizer", "hidden"), [("sgd", False), ("adamw", True)])
def test_an_arm_of_replicas_is_that_of_the_library(arm, optimizer, hidden):
    one = task(optimizer, hidden)
    value = VALUES.get(arm, 0.2)
    jobs = [Job(arm, False, lr, v, seed, 4) for lr, v in ((0.1, value), (0.2, value / 2)) for seed in (0, 1)]
    found = replicas.run_all(one, jobs, with_curve=True)
    for job, row in zip(jobs[1:3], found[1:3], strict=True):
        expected = run(one, job, with_curve=True)
        assert {k: row[k] for k in Job._fields} == job._asdict()
        assert row["passes"] == expected["passes"]
        # AdamW divides by the size of a gradient, rounding errors of differences included.
        for stop in ("final", "stopped"):
            assert row[stop] == pytest.approx(expected[stop], abs=1e-3 if optimizer == "adamw" else 2e-4)
        assert len(row["curve"]) == 2


def test_trials_of_an_arm_differ():
    one = task("sgd", False)
    jobs = [Job("cosine", True, lr, value, 0, 4) for lr, value in trials(one, ARMS["cosine"])]
    found = replicas.run_all(one, jobs, with_curve=False)
    assert len({row["final"]["test"] for row in found}) > 6
    assert [(row["lr"], row["value"]) for row in found] == [(job.lr, job.value) for job in jobs]


def test_a_diverged_replica_counts_as_untrained():
    one = task("sgd", False)
    jobs = [Job("plain", False, lr, 0.0, 0, 4) for lr in (0.1, 1e38)]
    fine, diverged = replicas.run_all(one, jobs, with_curve=False)
    made = problem(False, 0, False)
    assert diverged["final"] == pytest.approx(made.evaluate(made.model), abs=1e-4)
    assert fine["final"] == pytest.approx(run(one, jobs[0], False)["final"], abs=1e-4)
