"""The reference is double backward where that is right, and an extrapolation elsewhere."""

import pytest
import torch
from support.tuning_cases import two_layers
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F  # noqa: N812

import gradalign
from gradalign.tuning.reference import check_same_gradient

LONG = (1e3, 1e4, 1e5, 1e6)


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


# The differences of LONG are 0, since both ends saturate.
@pytest.mark.parametrize("radii", [(1.0,), (1.0, 2.0), (30.0, 100.0), LONG])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("steepness", [1, 30])  # 30: the default radius is too long as well
def test_long_radii_are_no_evidence_against_double_backward(radii, dtype, steepness):
    model, _, batches = two_layers(dtype=dtype)
    result = gradalign.tune(model, lambda b: (steepness * model(b[0])).tanh().exp().mean(), batches, radii=radii)
    assert min(p.central for p in result.curve) > 0.05
    assert (result.reference, result.reason) == ("double_backward", None)


@pytest.mark.parametrize("radii", [(30.0,), LONG])
def test_a_wrong_double_backward_is_detected_from_long_radii_too(radii):
    model, _, batches = two_layers()
    right = gradalign.tune(model, lambda batch: model(batch[0]).tanh().square().mean(), batches, radii=radii)
    found = gradalign.tune(model, lambda batch: Square.apply(model(batch[0]).tanh()), batches, radii=radii)
    assert (right.reference, found.reference) == ("double_backward", "richardson")
    assert "% from an extrapolation of central differences: it treats a part of the gradient as a" in found.reason
    assert [p.central for p in found.curve] == pytest.approx([p.central for p in right.curve], rel=1e-6)


def test_a_product_that_is_not_finite_is_no_reference():
    def undefined(x):  # adds 0, with the gradient 0, whose own gradient is nan
        return x.tanh() + (x - x.detach()).abs().pow(1.5)

    result = gradalign.tune(*two_layers(undefined))
    assert result.reference == "richardson"
    assert "double backward: expected a finite Hessian-vector product; got norm nan" in result.reason
    assert min(p.central for p in result.curve) < 1e-6
    with pytest.raises(RuntimeError, match="expected a finite .* got norm nan; .* use reference='richardson'"):
        gradalign.tune(*two_layers(undefined), reference="double_backward")


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
