"""A step in which no pass has run yet, for tests of what a step is made of."""

from __future__ import annotations

import torch

import gradalign


class _Keeping(gradalign.GradAlign):
    def _schedule(self, step, total):
        self.step = step
        return super()._schedule(step, total)


def begun_step(model, num=2, **options):
    """The `Step` of `num` micro-batches that `GradAlign(model, 0.5, **options)` begins."""
    aligner = _Keeping(model, 0.5, backend="reference", **options)
    aligner.accumulate(num).__enter__()
    return aligner.step


class Bowl(torch.nn.Module):
    """L(c) = curvature / 2 ||theta - c||^2: gradient curvature (theta - c), Hessian curvature I. Counts its forwards."""

    def __init__(self, theta, curvature=1.0):
        super().__init__()
        self.theta = torch.nn.Parameter(torch.tensor(theta, dtype=torch.float64))
        self.curvature = curvature
        self.register_buffer("num_forwards", torch.zeros(()))

    def forward(self, c):
        self.num_forwards += 1
        return self.curvature / 2 * (self.theta - torch.tensor(c, dtype=torch.float64)).square().sum()
