"""The warning comes where the loss is a staircase over the displacement, and only there."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from gradalign.engine.quotient_check import check_quotient


class FakeQuantised(nn.Linear):
    """Weights rounded to a grid in the forward; the gradient passes straight through."""

    grid = 0.25

    def forward(self, x):
        rounded = torch.round(self.weight / self.grid) * self.grid
        return nn.functional.linear(x, self.weight + (rounded - self.weight).detach(), self.bias)


class Float8(nn.Linear):
    """Weights and inputs in float8, as float8 training computes."""

    def forward(self, x):
        weight = self.weight + (self.weight.to(torch.float8_e4m3fn).float() - self.weight).detach()
        return nn.functional.linear(x.to(torch.float8_e4m3fn).float(), weight, self.bias)


def numbers(layer, radius):
    """What the check is given for a displacement along the gradient."""
    torch.manual_seed(1)
    model = nn.Sequential(layer(8, 16, bias=False), nn.Tanh(), layer(16, 1, bias=False))
    x = torch.randn(16, 8)
    loss = (model(x) - 1).square().mean()
    grads = torch.autograd.grad(loss, list(model.parameters()))
    norm = torch.cat([g.flatten() for g in grads]).norm()
    with torch.no_grad():
        for p, g in zip(model.parameters(), grads, strict=True):
            p.add_(g, alpha=radius / float(norm))
        there = (model(x) - 1).square().mean()
    return there - loss.detach(), radius * norm, torch.tensor(1.0), loss.detach(), radius


@pytest.mark.parametrize("layer", [FakeQuantised, Float8])
def test_compute_in_few_bits_is_named(layer):
    with pytest.warns(UserWarning, match=r"forward in low precision .* try radius=0.02 .* gradalign.tune") as caught:
        assert check_quotient(*numbers(layer, 0.002), stacklevel=1)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("radius", [0.002, 0.01, 0.03])
def test_a_smooth_loss_is_not(radius):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not check_quotient(*numbers(nn.Linear, radius), stacklevel=1)


@pytest.mark.parametrize(
    ("change", "predicted", "cosine", "loss", "warned"),
    [
        (0.65, 1.0, 1.0, 1.0, True),
        (0.68, 1.0, 1.0, 1.0, False),
        (1.35, 1.0, -0.3, 1.0, True),
        (1.35, 1.0, 0.19, 1.0, False),  # curvature may outweigh the slope
        (0.0, 1e-6, 1.0, 1.0, False),  # below the resolution of a float32 loss
        (float("nan"), 1.0, 1.0, 1.0, False),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_its_limits(change, predicted, cosine, loss, warned):
    scalars = [torch.tensor(x) for x in (change, predicted, cosine, loss)]
    assert check_quotient(*scalars, 0.01, stacklevel=1) == warned
