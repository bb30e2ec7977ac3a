"""What the graph of a loss tells: casts of parameters, and parameters of other modules."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from gradalign import GradAlign


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_cast_of_inputs_or_to_a_wider_dtype_is_no_autocast(dtype):
    model = nn.Linear(3, 3)
    aligner = GradAlign(model, 0.1)
    scale = torch.ones(3, requires_grad=True)

    def loss_fn(x):
        y = F.linear(x.to(dtype), model.weight.to(dtype), model.bias.to(dtype))
        return y.square().mean() + scale.bfloat16().sum() + y.bfloat16().sum()

    aligner.backward(loss_fn, list(torch.randn(4, 5, 3)))
    assert aligner.stats.radius == 0.01


@pytest.mark.parametrize("estimator", ["split", "prefix", "leave_one_out", "momentum", "exact"])
@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_a_loss_that_trains_parameters_of_another_module_is_refused(estimator, weight):
    encoder, head = nn.Linear(3, 4), nn.Linear(4, 1)
    batches = list(torch.randn(4, 5, 3))

    def loss_fn(x):
        return head(encoder(x).tanh()).square().mean()

    with pytest.raises(ValueError, match=r"trains 2 that are not in it.*model=\[encoder, head\]"):
        GradAlign(encoder, weight, estimator=estimator).backward(loss_fn, batches)
    with pytest.raises(ValueError, match="trains 4 that are not in it"):
        GradAlign(copy.deepcopy(encoder), weight, estimator=estimator).backward(loss_fn, batches)
    assert all(p.grad is None for p in (*encoder.parameters(), *head.parameters()))
    GradAlign([encoder, head], weight, estimator=estimator).backward(loss_fn, batches)
    encoder.zero_grad()
    head.requires_grad_(False)
    inputs = [x.requires_grad_() for x in batches]  # leaves that are no parameters are nobody's business
    GradAlign(encoder, weight, estimator=estimator).backward(loss_fn, inputs)
