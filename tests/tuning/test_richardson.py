"""The extrapolation takes the radii that agree best, and none that tell nothing."""

import pytest
import torch
from support.tuning_cases import two_layers
from torch import nn

import gradalign
from gradalign.tuning import RADII


def test_differences_of_zero_are_not_extrapolated():
    model, _, batches = two_layers(dtype=torch.float32)
    options = {"radii": (1e3, 1e4, 1e5, 1e6), "reference": "richardson"}
    result = gradalign.tune(model, lambda b: model(b[0]).tanh().exp().mean(), batches, **options)
    assert result.uncertainty < 1e-3  # that of the default radii
    assert [p.central for p in result.curve] == [1.0] * 4


def test_where_nothing_moves_there_is_no_extrapolation():
    model, batches = nn.Linear(3, 1), list(torch.rand(4, 8, 3))
    nn.init.constant_(model.weight, 1e9)  # float32 has steps of 64 there
    options = (model, lambda x: (model(x) / 1e9).square().mean(), batches)
    result = gradalign.tune(*options, params=[model.weight])
    assert (result.reference, result.reason, result.curve[-1].moved) == ("double_backward", None, 0.0)
    with pytest.raises(ValueError, match="expected finite differences other than 0 .* longer ones where"):
        gradalign.tune(*options, params=[model.weight], reference="richardson")
    long = gradalign.tune(*options, params=[model.weight], reference="richardson", radii=(1e4, 1e5, 1e6))
    assert long.curve[0].central < 0.05


def test_differences_that_are_not_finite_cannot_be_extrapolated():
    model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    nn.init.constant_(model.weight, 1e-5)
    batches = list(torch.rand(4, 8, 1, dtype=torch.float64) + 1)

    def loss_fn(x):  # nan where the weight is negative
        return model(x).sqrt().mean()

    with pytest.raises(ValueError, match="expected finite differences other than 0 at three .* got none"):
        gradalign.tune(model, loss_fn, batches, reference="richardson")
    assert gradalign.tune(model, loss_fn, batches).reference == "double_backward"
    shorter = gradalign.tune(model, loss_fn, batches, reference="richardson", radii=(1e-8, 1e-7, 1e-6))
    assert shorter.curve[0].central < 1e-4


def test_a_sweep_is_extrapolated_from_the_default_radii_too():
    own, default = (gradalign.tune(*two_layers(), radii=r, reference="richardson") for r in ((4, 3, 2, 1), RADII))
    assert own.uncertainty == default.uncertainty


class Positive(nn.Module):
    """Its scale has to be positive, as that of a distribution."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1e-3, 2e-3, 1.5e-3], dtype=torch.float64))

    def forward(self, x):
        assert (self.scale > 0).all(), "scale must be positive"
        return (x * self.scale.sqrt()).square().mean() + (x * self.scale * 1000).sin().mean()


@pytest.mark.parametrize("reference", ["richardson", "auto"])
@pytest.mark.parametrize("radii", [(1e-5,), (1e-6, 3e-6, 1e-5, 3e-5, 1e-4)])
def test_a_loss_that_raises_at_radii_that_nobody_asked_for_is_tuned(radii, reference):
    model, batches = Positive(), list(torch.randn(8, 16, 3, dtype=torch.float64))
    before = model.scale.detach().clone()
    result = gradalign.tune(model, model, batches, radii=radii, reference=reference)
    assert [point.radius for point in result.curve] == list(radii)
    assert max(point.central for point in result.curve) < 0.05
    assert torch.equal(model.scale, before)
    with pytest.raises(AssertionError, match="scale must be positive"):
        gradalign.tune(model, model, batches, radii=(*radii, 0.1), reference=reference)
    assert torch.equal(model.scale, before)
