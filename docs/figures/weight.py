"""How large the term is beside the gradient during training, with the starting weights and warm-up."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import torch
from matplotlib.figure import Figure
from small import Problem, command

import gradalign

WEIGHTS = {"dot": 0.001, "norm": 0.03, "variance": 0.03}
WARM_UP = 0.15  # of the steps


def shares(objective: str, steps: int, warm_up: float) -> list[float]:
    """weight ||term|| / ||gradient|| in every step of AdamW, clipped at norm 1."""
    problem = Problem()
    peak, rise = WEIGHTS[objective], max(1.0, warm_up * steps)

    def weight(step: int) -> float:
        return peak * min(1.0, (step + 1) / rise)

    aligner = gradalign.GradAlign(problem.model, weight=weight, objective=objective, telemetry=True)
    optimizer = torch.optim.AdamW(problem.params, lr=0.01)
    found = []
    for step in range(steps):
        aligner.backward(problem.loss, problem.micro_batches(8))
        found.append(weight(step) * float(aligner.stats.term_norm) / float(aligner.stats.grad_norm))
        torch.nn.utils.clip_grad_norm_(problem.params, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return found


def draw(out: Path, effort: int) -> None:
    """One line for each objective, dashed without warm-up, into weight.png; effort is the number of steps."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for colour, objective in enumerate(WEIGHTS):
        for warm_up, style in ((WARM_UP, "-"), (0.0, ":")):
            values = shares(objective, effort, warm_up)
            label = f"{objective}, {WEIGHTS[objective]}" + ("" if warm_up else ", without warm-up")
            axes.plot(values, style, color=f"C{colour}", label=label, linewidth=1)
            print(
                f"{label:<32} first tenth {fmean(values[: effort // 10]):.1%}, last tenth {fmean(values[-effort // 10 :]):.1%}"
            )
    axes.set(xlabel="step", ylabel="weight ||term|| / ||gradient||", yscale="log")
    axes.legend(fontsize=7)
    figure.savefig(out / "weight.png", dpi=120)


if __name__ == "__main__":
    command(draw, effort=200)
