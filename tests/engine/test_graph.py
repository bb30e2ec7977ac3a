"""What the graph of a loss tells: casts of parameters, and parameters of other modules."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from gradalign import GradAlign


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_cast_of_inputs_or_to_a_wider_dtype_is_no_autocast(dtype):
    model = nn.Linear(3, 3)
    aligner = GradAlign(model, 0.1)

    def loss_fn(x):
        y = F.linear(x.to(dtype), model.weight.to(dtype), model.bias.to(dtype))
        return y.square().mean() + torch.ones(3, requires_grad=True).bfloat16().sum() + y.bfloat16().sum()

    aligner.backward(loss_fn, list(torch.randn(4, 5, 3)))
    assert aligner.stats.radius == 0.01
