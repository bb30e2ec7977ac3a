"""Operations that have no second derivative are refused by every method that differentiates twice."""

from __future__ import annotations

import pytest
import torch

import gradalign


class OnceDifferentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * (1 - x.tanh() ** 2)


def test_a_function_that_can_be_differentiated_once_is_refused():
    """`autograd.grad` would pass its refusal by and return a Hessian-vector product that lacks a part."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    batches = list(torch.randn(4, 5, 3))
    aligner = gradalign.GradAlign(model, 0.1, estimator="exact")
    with pytest.raises(RuntimeError, match="expected twice differentiable operations; got: .*once_differentiable"):
        aligner.backward(lambda x: model[1](OnceDifferentiable.apply(model[0](x))).square().mean(), batches)


@pytest.mark.parametrize("method", ["exact", "MAML"])
def test_such_a_function_at_the_end_of_the_loss_is_refused(method):
    """The gradient that reaches it is a constant, so that torch would differentiate twice without its part."""
    model = torch.nn.Linear(3, 1)
    make_method = {
        "exact": lambda: gradalign.GradAlign(model, 0.1, estimator="exact"),
        "MAML": lambda: gradalign.baselines.MAML(model, 0.1),
    }[method]
    with pytest.raises(RuntimeError, match="got: trying to differentiate twice OnceDifferentiableBackward"):
        make_method().backward(lambda x: OnceDifferentiable.apply(model(x)).mean(), list(torch.randn(4, 5, 3)))
    assert model.weight.grad is None
