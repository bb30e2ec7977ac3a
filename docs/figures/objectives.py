"""Where each objective's term pushes two parameters that four micro-batches see differently."""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.figure import Figure
from small import command

import gradalign
from gradalign.objectives import OBJECTIVES

CENTRES = torch.tensor([[1.0, 0.0], [-0.6, 0.8], [-0.4, -0.9], [0.2, 0.3]], dtype=torch.float64)
CURVATURES = torch.tensor([[3.0, 1.0], [1.0, 2.0], [1.0, 3.0], [2.0, 1.0]], dtype=torch.float64)


class Bowls(torch.nn.Module):
    """Two parameters, a quadratic bowl for each micro-batch."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, i: int) -> torch.Tensor:
        """Loss of micro-batch i."""
        return losses(self.theta)[i]


def losses(theta: torch.Tensor) -> torch.Tensor:
    """Of the four micro-batches, for parameters of shape (..., 2)."""
    return 0.5 * (CURVATURES * (theta[..., None, :] - CENTRES).square()).sum(-1)


def push(model: Bowls, objective: str, theta: torch.Tensor) -> torch.Tensor:
    """Which way plus weight times the term moves theta: grad A, by double backward."""
    with torch.no_grad():
        model.theta.copy_(theta)
    aligner = gradalign.GradAlign(model, weight=1.0, objective=objective, normalize="none", estimator="exact")
    plain = torch.autograd.grad(sum(model(i) for i in range(4)) / 4, [model.theta])[0]
    aligner.backward(model, list(range(4)))
    pushed = plain - model.theta.grad
    model.theta.grad = None
    return pushed


def draw(out: Path, effort: int) -> None:
    """A panel for each objective into objectives.png; effort is the number of arrows along an axis."""
    model = Bowls()
    axis = torch.linspace(-1.5, 1.5, effort, dtype=torch.float64)
    fine = torch.linspace(-1.7, 1.7, 60, dtype=torch.float64)
    y_of, x_of = torch.meshgrid(fine, fine, indexing="ij")
    mean_loss = losses(torch.stack((x_of, y_of), -1)).mean(-1)
    figure = Figure(figsize=(10, 2.9), layout="constrained")
    for panel, objective in zip(figure.subplots(1, 4, sharey=True), OBJECTIVES, strict=True):
        panel.contour(fine, fine, mean_loss, levels=12, linewidths=0.6, cmap="Greys")
        for y in axis:
            for x in axis:
                arrow = push(model, objective, torch.stack((x, y)))
                arrow = 0.22 * arrow / arrow.norm().clamp(min=1e-12)
                panel.annotate("", (x + arrow[0], y + arrow[1]), (x, y), arrowprops={"arrowstyle": "->", "lw": 0.9})
        panel.plot(*CENTRES.T, "x", color="tab:red", markersize=5)
        panel.set(title=objective, aspect="equal")
    figure.savefig(out / "objectives.png", dpi=120)


if __name__ == "__main__":
    command(draw, effort=9)
