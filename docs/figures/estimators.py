"""Error and cost of every estimator, and how momentum's term agrees with the others' along a training run."""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.figure import Figure
from small import Problem, command, plain_gradient
from torch.nn.functional import cosine_similarity

import gradalign

K, RADIUS = 8, 1e-4
CONFIGURATIONS = {
    "split, m = 1": {"estimator": "split", "probe_fraction": 1 / 8},
    "split, m = 2": {"estimator": "split", "probe_fraction": 2 / 8},
    "split, m = 4": {"estimator": "split", "probe_fraction": 4 / 8},
    "prefix": {"estimator": "prefix"},
    "prefix, block = 2": {"estimator": gradalign.estimators.Prefix(block=2)},
    "prefix, block = 4": {"estimator": gradalign.estimators.Prefix(block=4)},
    "symmetric": {"estimator": "symmetric"},
    "leave_one_out": {"estimator": "leave_one_out"},
}
RATES = (0.001, 0.01, 0.1)


def errors(draws: int) -> dict[str, tuple[float, float]]:
    """Passes per micro-batch, and rmse of one estimate of grad A (dot) relative to that of the whole data."""
    problem = Problem()
    everything = torch.arange(len(problem.x))
    truth = 2 * problem.hvp(problem.gradient(everything))
    aligners = {
        name: gradalign.GradAlign(problem.model, weight=1.0, normalize="none", radius=RADIUS, **settings)
        for name, settings in CONFIGURATIONS.items()
    }
    squares = dict.fromkeys(aligners, 0.0)
    for _ in range(draws):
        micro_batches = problem.micro_batches(K)
        gbar = plain_gradient(problem, micro_batches)
        for name, aligner in aligners.items():
            aligner.backward(problem.loss, micro_batches)
            squares[name] += float((gbar - problem.take_gradient() - truth).square().sum())
    return {
        name: (aligner.stats.passes / K, (squares[name] / draws) ** 0.5 / float(truth.norm()))
        for name, aligner in aligners.items()
    }


def agreement(rate: float, steps: int) -> dict[str, float]:
    """Mean cosine of each term (direction) with H g^ of the whole data, and of momentum's with leave_one_out's.

    Plain gradient descent with that learning rate; the first 20 steps, in which the running mean fills, are not counted.
    """
    problem = Problem()
    everything = torch.arange(len(problem.x))
    weight = 1e-3
    names = ("momentum", "split", "leave_one_out")
    aligners = {
        name: gradalign.GradAlign(problem.model, weight=weight, estimator=name, radius=weight) for name in names
    }
    found = dict.fromkeys([*names, "momentum with leave_one_out"], 0.0)
    for step in range(steps + 20):
        micro_batches = problem.micro_batches(K)
        gbar = plain_gradient(problem, micro_batches)
        terms = {}
        for name, aligner in aligners.items():
            aligner.backward(problem.loss, micro_batches)
            terms[name] = gbar - problem.take_gradient()
        if step >= 20:
            truth = problem.hvp(problem.gradient(everything))
            for name, term in terms.items():
                found[name] += float(cosine_similarity(term, truth, 0)) / steps
            found["momentum with leave_one_out"] += (
                float(cosine_similarity(terms["momentum"], terms["leave_one_out"], 0)) / steps
            )
        with torch.no_grad():
            torch.nn.utils.vector_to_parameters(
                torch.nn.utils.parameters_to_vector(problem.params) - rate * gbar, problem.params
            )
    return found


def draw(out: Path, effort: int) -> None:
    """Two panels into estimators.png; prints the numbers."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, (cost, error) in errors(effort).items():
        print(f"{name:<16} {cost:.3f} passes a micro-batch, error {error:.2f}")
        left.plot(cost, error, "o")
        left.annotate(name, (cost, error), textcoords="offset points", xytext=(5, 4), fontsize=8)
    left.set(xlabel="passes a micro-batch", ylabel="rmse of one estimate / ||grad A||", xlim=(1, 2.3))
    lines: dict[str, list[float]] = {}
    for rate in RATES:
        for name, cosine in agreement(rate, effort).items():
            print(f"learning rate {rate:<6} {name:<28} cosine {cosine:.2f}")
            lines.setdefault(name, []).append(cosine)
    for name, cosines in lines.items():
        right.plot(RATES, cosines, "o--" if " with " in name else "o-", label=name)
    right.set(xscale="log", xlabel="learning rate", ylabel="cosine with H g^ of the whole data", ylim=(-1, 1))
    right.legend(fontsize=8)
    figure.savefig(out / "estimators.png", dpi=120)


if __name__ == "__main__":
    command(draw, effort=200)
