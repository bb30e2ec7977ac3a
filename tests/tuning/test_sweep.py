import pytest
import torch
from support.tuning_cases import two_layers

import gradalign
from gradalign.tuning.sweep import MAX_RADIUS, MIN_RADIUS, sweep_radii


def test_radii_are_sorted_without_duplicates():
    assert sweep_radii(x for x in (0.1, 0.01, 0.1)) == [0.01, 0.1]


@pytest.mark.parametrize(
    ("radii", "error", "message"),
    [
        ((), ValueError, "radii: expected at least one; got none"),
        ((0.1, -1), ValueError, "radii: expected a finite number above 0"),
        ((0.1, "0.2"), TypeError, "radii: expected a number; got str"),
        (
            (0.1, 1e-300),
            ValueError,
            "from 1e-18 to 1e\\+18, .* got 1e-300; lengths from 0.0003 to 0.3 are usual",
        ),
        ((1e300,), ValueError, "radii: expected lengths from 1e-18 to 1e\\+18, .* got 1e\\+300"),
        (0.01, TypeError, "radii: expected several lengths; got float; put it in a list: radii=\\[0.01\\]"),
        (torch.tensor(0.01), TypeError, "radii: expected several lengths; got Tensor"),
    ],
)
def test_invalid_radii_are_refused(radii, error, message):
    with pytest.raises(error, match=message):
        sweep_radii(radii)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("reference", ["double_backward", "richardson"])
def test_the_smallest_and_the_largest_radius_can_be_measured(dtype, reference):
    result = gradalign.tune(*two_layers(dtype=dtype), radii=(MIN_RADIUS, MAX_RADIUS), reference=reference)
    assert [p.moved for p in result.curve] == [0.0, 1.0]
    assert [p.central for p in result.curve] == pytest.approx([1.0, 1.0], abs=0.01)
