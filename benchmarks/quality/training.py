"""One run: an arm trained on one seed of a task, evaluated as it goes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import nn

from benchmarks.quality.arms import ARMS, Arm
from benchmarks.quality.sampling import generator
from benchmarks.quality.task import Batch, Problem, Task

Metrics = dict[str, float]
Evaluations = list[tuple[int, Metrics]]  # step, metrics
POINTS = 10  # of a curve that is kept


class Job(NamedTuple):
    """What tells a run from all others of its task.

    Attributes:
        arm: its name.
        mixed: whether the sources were mixed.
        lr: of the optimizer.
        value: the arm's own parameter.
        seed: of the problem and of the random numbers in training.
        steps: as many as it takes.
    """

    arm: str
    mixed: bool
    lr: float
    value: float
    seed: int
    steps: int


def run(task: Task, job: Job, with_curve: bool) -> dict[str, Any]:
    """The row of a run.

    Returns:
        The job's fields and `kind`, `engine`, `seconds` (of processor time, in training alone), `passes`, and metrics at the
        `final` step and, with its `step`, where "validation" was best (`stopped`). With a curve also [step, test] at up to
        `POINTS` steps. From where parameters are no longer finite, metrics are those of the untrained model.
    """
    problem, arm = task.problem(job.seed, job.mixed), ARMS[job.arm]
    torch.manual_seed(job.seed)
    optimizer = _optimizer(task, arm, problem.model, job)
    backward = arm.make(problem.model, job.value, partial(ramp, task.ramp))
    evaluations, seconds = _train(task, problem, job, backward, optimizer)
    passes = arm.passes(len(problem.micro_batches(0))) * job.steps
    return row_of(job, evaluations, passes, with_curve) | {"engine": "library", "seconds": round(seconds, 3)}


def row_of(job: Job, evaluations: Evaluations, passes: int, with_curve: bool) -> dict[str, Any]:
    """The row of a run from its evaluations."""
    step, best = max(evaluations, key=lambda found: found[1]["validation"])
    row: dict[str, Any] = {
        **job._asdict(),
        "kind": "run",
        "passes": passes,
        "final": rounded(evaluations[-1][1]),
        "stopped": {"step": step, **rounded(best)},
    }
    if with_curve:
        every = math.ceil(len(evaluations) / POINTS)
        kept = evaluations[::-1][::every][::-1]
        row["curve"] = [[step, round(metrics["test"], 4)] for step, metrics in kept]
    return row


def in_turn(problem: Problem, seed: int, step: int) -> list[Batch]:
    """The micro-batches of a step in an order drawn for this seed and step, since inner loops depend on it."""
    micro_batches = problem.micro_batches(step)
    order = torch.randperm(len(micro_batches), generator=generator(seed, step, 2))
    return [micro_batches[i] for i in order.tolist()]


def ramp(steps: int, step: int) -> float:
    """1/steps, 2/steps, ..., 1, 1, ..."""
    return min(1.0, (step + 1) / steps) if steps else 1.0


def rounded(metrics: Metrics) -> Metrics:
    """To four digits after the point."""
    return {name: round(value, 4) for name, value in metrics.items()}


def _optimizer(task: Task, arm: Arm, model: nn.Module, job: Job) -> torch.optim.Optimizer:
    params = [p for p in model.parameters() if p.requires_grad]
    if task.optimizer == "sgd":
        return torch.optim.SGD(params, lr=job.lr, weight_decay=job.value if arm.decay else 0.0)
    return torch.optim.AdamW(params, lr=job.lr, weight_decay=job.value if arm.decay else 0.01)


def _train(
    task: Task, problem: Problem, job: Job, backward: Any, optimizer: torch.optim.Optimizer
) -> tuple[Evaluations, float]:
    """The evaluations, and the seconds of all steps."""
    model, seconds = problem.model, 0.0
    # Seldom needed, and an evaluation takes as long as tens of steps.
    untrained = cache(lambda: problem.evaluate(task.problem(job.seed, job.mixed).model))
    evaluations: Evaluations = []
    loss_fn = partial(problem.loss_fn, model)
    for step in range(job.steps):
        micro_batches = in_turn(problem, job.seed, step)
        start = time.process_time()
        backward(loss_fn, micro_batches)
        optimizer.step()
        optimizer.zero_grad()
        seconds += time.process_time() - start
        if (step + 1) % task.evaluate_every == 0 or step + 1 == job.steps:
            alive = all(bool(p.isfinite().all()) for p in model.parameters())
            evaluations.append((step + 1, finite_or(problem.evaluate(model) if alive else None, untrained)))
    return evaluations, seconds


def finite_or(metrics: Metrics | None, untrained: Callable[[], Metrics]) -> Metrics:
    """The metrics; those of the untrained model where there are none or one of them is not finite."""
    return metrics if metrics and all(map(math.isfinite, metrics.values())) else untrained()
