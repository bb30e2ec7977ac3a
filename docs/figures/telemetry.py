"""The gradient noise scale during training, from the statistics of the steps and from the whole data."""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.figure import Figure
from small import Problem, command

import gradalign

SIZE = 32  # samples of a micro-batch
WINDOW = 20  # steps whose numerators and denominators are averaged before they are divided


def truth(problem: Problem, size: int) -> float:
    """tr Cov of a micro-batch's gradient over the squared norm of the whole data's; samples are drawn independently."""
    num = len(problem.x)
    each = torch.stack([problem.gradient(torch.tensor([i])) for i in range(num)])
    spread = (each - each.mean(0)).square().sum() / num
    return float(spread / size / each.mean(0).square().sum())


def scales(noise: float, steps: int) -> tuple[list[int], list[float], list[float]]:
    """Steps, estimates over windows, and the whole data's value in the middle of each."""
    problem = Problem(noise, num=256)
    aligner = gradalign.GradAlign(problem.model, weight=0.0, telemetry=True)
    optimizer = torch.optim.SGD(problem.params, lr=0.01)
    middles, estimates, true = [], [], []
    numerator = denominator = 0.0
    for step in range(steps):
        if step % WINDOW == WINDOW // 2:
            middles.append(step)
            true.append(truth(problem, SIZE))
        aligner.backward(problem.loss, problem.independent_micro_batches(8, SIZE))
        numerator += float(aligner.stats.noise_numerator)
        denominator += float(aligner.stats.noise_denominator)
        if step % WINDOW == WINDOW - 1:
            estimates.append(numerator / denominator)
            numerator = denominator = 0.0
        optimizer.step()
        optimizer.zero_grad()
    return middles, estimates, true


def draw(out: Path, effort: int) -> None:
    """Two levels of noise into noise-scale.png; effort is the number of steps."""
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for colour, noise in enumerate((0.1, 0.5)):
        middles, estimates, true = scales(noise, effort - effort % WINDOW)
        axes.plot(middles, true, color=f"C{colour}", label=f"noise {noise}: whole data")
        axes.plot(
            middles, estimates, "o", color=f"C{colour}", markersize=4, label=f"noise {noise}: windows of {WINDOW} steps"
        )
        print(f"noise {noise}: " + ", ".join(f"{e:.2f} ({t:.2f})" for e, t in zip(estimates, true, strict=True)))
    axes.set(xlabel="step", ylabel="noise scale in micro-batches", yscale="log")
    axes.legend(fontsize=8)
    figure.savefig(out / "noise-scale.png", dpi=120)


if __name__ == "__main__":
    command(draw, effort=200)
