"""The reference is double backward where that is right, and an extrapolation elsewhere."""

import pytest
import torch
from support.tuning_cases import two_layers
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F  # noqa: N812

import gradalign
from gradalign.tuning.reference import check_same_gradient, extrapolation_radii


class Tanh(torch.autograd.Function):
    """tanh whose backward cannot be differentiated."""

    @staticmethod
    def forward(ctx, x):
        y = x.tanh()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (y,) = ctx.saved_tensors
        return grad * (1 - y**2)


class Square(torch.autograd.Function):
    """Mean square that computes its derivative in the forward, as fused losses do: a constant to double backward."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(2 * x / x.numel())
        return x.square().mean()

    @staticmethod
    def backward(ctx, grad):
        (derivative,) = ctx.saved_tensors
        return grad * derivative.detach()


class Attention(nn.Module):
    """Fused attention, which has no second derivative on the CPU."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 3)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)).mean(1)


def test_where_double_backward_cannot_run_an_extrapolation_takes_its_place():
    exact = gradalign.tune(*two_layers())
    found = gradalign.tune(*two_layers(Tanh.apply))
    assert (exact.reference, found.reference) == ("double_backward", "richardson")
    assert "once_differentiable" in found.reason
    assert found.uncertainty < 1e-6
    for ours, theirs in zip(found.curve, exact.curve, strict=True):
        assert ours.forward == pytest.approx(theirs.forward, rel=1e-3)
        assert ours.central == pytest.approx(theirs.central, rel=1e-2, abs=1e-6)


def test_an_explicit_double_backward_does_not_fall_back():
    with pytest.raises(
        RuntimeError, match="double backward: expected twice differentiable operations; got: .*once_diff"
    ):
        gradalign.tune(*two_layers(Tanh.apply), reference="double_backward")


def test_a_backward_that_double_backward_gets_wrong_is_detected():
    model, _, batches = two_layers()
    result = gradalign.tune(model, lambda batch: Square.apply(model(batch[0])), batches)
    assert result.reference == "richardson"
    assert f"Double backward was not used: {result.reason}" in str(result)
    assert "it treats a part of the gradient as a constant (a custom backward?" in result.reason
    assert min(p.central for p in result.curve) < 1e-3
    unchecked = gradalign.tune(model, lambda b: Square.apply(model(b[0])), batches, reference="double_backward")
    assert min(p.central for p in unchecked.curve) > 0.05


def test_fused_attention_is_unfused_for_the_reference():
    torch.manual_seed(0)
    model = Attention()
    batches = list(torch.randn(4, 5, 6, 8))
    result = gradalign.tune(model, lambda x: model(x).square().mean(), batches)
    with pytest.raises(RuntimeError, match="not implemented"):
        gradalign.GradAlign(model, 0.1, estimator="exact").backward(lambda x: model(x).square().mean(), batches)
    assert (result.reference, result.reason) == ("double_backward", None)
    assert min(p.central for p in result.curve) < 1e-3


@pytest.mark.parametrize("distance", [0.5, float("nan")])
def test_a_differentiable_pass_with_another_gradient_is_refused(distance):
    check_same_gradient(0.1)
    with pytest.raises(
        RuntimeError, match="double backward: expected the gradient of the plain pass; got one that dif"
    ):
        check_same_gradient(distance)


def test_a_short_sweep_is_extrapolated_from_the_default_radii_too():
    assert extrapolation_radii((0.2, 0.1), (0.3, 0.1)) == [0.1, 0.2, 0.3]
    assert extrapolation_radii((4, 3, 2, 1), (0.1,)) == [1, 2, 3, 4]
