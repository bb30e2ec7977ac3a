"""What the figures are measured on: a small network in float64 on noisy data, whose whole-data gradient can be computed."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector

FOLDER = Path(__file__).parent


class Problem:
    """Regression of a noisy teacher by a perceptron of 161 parameters.

    Args:
        noise: standard deviation of the targets' noise.
        num: samples.
        seed: of teacher, samples and weights.
    """

    def __init__(self, noise: float = 0.5, num: int = 1024, seed: int = 0) -> None:
        self.draw = torch.Generator().manual_seed(seed)
        self.x = torch.randn(num, 8, generator=self.draw, dtype=torch.float64)
        teacher = torch.randn(8, generator=self.draw, dtype=torch.float64)
        clean = torch.sin(self.x @ teacher / 2)
        self.y = clean + noise * torch.randn(num, generator=self.draw, dtype=torch.float64)
        torch.manual_seed(seed)
        self.model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1)).double()
        self.params = list(self.model.parameters())

    def loss(self, rows: Tensor) -> Tensor:
        """Mean squared error on these samples."""
        return (self.model(self.x[rows]).squeeze(-1) - self.y[rows]).square().mean()

    def micro_batches(self, k: int, size: int = 8) -> list[Tensor]:
        """k disjoint ones, in random order."""
        return list(torch.randperm(len(self.x), generator=self.draw)[: k * size].view(k, size))

    def independent_micro_batches(self, k: int, size: int) -> list[Tensor]:
        """k, every sample drawn from all of them."""
        return list(torch.randint(len(self.x), (k, size), generator=self.draw))

    def gradient(self, rows: Tensor) -> Tensor:
        """As one vector."""
        return parameters_to_vector(torch.autograd.grad(self.loss(rows), self.params))

    def hvp(self, v: Tensor) -> Tensor:
        """The Hessian of the whole data's loss times v, by double backward."""
        g = torch.autograd.grad(self.loss(torch.arange(len(self.x))), self.params, create_graph=True)
        return parameters_to_vector(torch.autograd.grad(parameters_to_vector(g) @ v, self.params))

    def take_gradient(self) -> Tensor:
        """What a backward left in `.grad`, which is None afterwards."""
        taken = parameters_to_vector([p.grad for p in self.params])
        self.model.zero_grad()
        return taken


def plain_gradient(problem: Problem, micro_batches: list[Tensor]) -> Tensor:
    """gbar."""
    return sum(problem.gradient(b) for b in micro_batches) / len(micro_batches)


def command(draw: Callable[[Path, int], None], effort: int) -> None:
    """`python docs/figures/<page>.py [--out FOLDER] [--effort N]`: draws the figure of a page."""
    parser = argparse.ArgumentParser(description=draw.__doc__)
    parser.add_argument("--out", type=Path, default=FOLDER, help="the folder for the picture")
    parser.add_argument("--effort", type=int, default=effort, help="how many draws or steps are averaged")
    chosen = parser.parse_args()
    draw(chosen.out, chosen.effort)
