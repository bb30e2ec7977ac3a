"""State that changes the gradient of a repeated pass, and not its loss."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gradalign import GradAlign


class Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return -ctx.factor * gradient, None


class Adversarial(nn.Module):
    """A gradient reversal layer whose coefficient grows with each forward: in a counter, or in a buffer."""

    def __init__(self, counter):
        super().__init__()
        torch.manual_seed(0)
        self.features, self.head, self.domain = nn.Linear(6, 8), nn.Linear(8, 1), nn.Linear(8, 1)
        self.count = 0
        if counter == "buffer":
            self.count = None
            del self.count
            self.register_buffer("count", torch.zeros(()))
        self.grows = counter != "constant"

    def forward(self, x):
        hidden = torch.tanh(self.features(x))
        factor = float(self.count) / 100
        if self.grows:
            self.count = self.count + 1
        return self.head(hidden).square().mean() + (self.domain(Reverse.apply(hidden, factor)) - 1).square().mean()


def step(counter, dtype, **options):
    model = Adversarial(counter).to(dtype)
    generator = torch.Generator().manual_seed(1)
    data = [torch.randn(4, 6, generator=generator).to(dtype) for _ in range(8)]
    aligner = GradAlign(model, 0.03, **options)
    aligner.backward(model, data)
    return aligner.num_steps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "options", [{}, {"objective": "variance"}, {"estimator": "prefix"}, {"estimator": "leave_one_out"}], ids=str
)
def test_a_counter_that_only_the_backward_reads_is_refused(options, dtype):
    with pytest.raises(RuntimeError, match="expected the same gradient.*same loss.*gradient reversal layer"):
        step("Python", dtype, **options)
    assert step("buffer", dtype, **options) == 1
    assert step("constant", dtype, **options) == 1


def test_the_check_can_be_turned_off():
    assert step("Python", torch.float32, check_replay=False) == 1
