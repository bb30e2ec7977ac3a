import math

import pytest
import torch
from support import oracle
from support.measure import exact_term
from support.tuning_cases import two_layers

import gradalign
from gradalign.tuning import STARTING_WEIGHTS


@pytest.mark.parametrize("radii", [(1e-3,), (3.0,), (1e2, 1e3, 1e4, 1e5)])  # in the others the default radius is better
@pytest.mark.parametrize("objective", sorted(STARTING_WEIGHTS))
def test_the_size_of_the_term_is_that_of_the_exact_one(objective, radii):
    model, loss_fn, batches = two_layers()
    term, g, _ = exact_term(model, loss_fn, batches, objective, "direction", oracle.split_pairs(8, 2))
    found = gradalign.tune(model, loss_fn, batches, radii=radii).weights[objective]
    assert found.value == STARTING_WEIGHTS[objective]
    assert found.term_size == pytest.approx(found.value * float(term.norm() / g.mean(0).norm()), rel=1e-3)
    assert found.trial


@pytest.mark.parametrize(
    ("options", "known"),
    [
        ({"radii": (1e-4,)}, {"dot", "norm", "variance", "cosine"}),
        ({"radii": (1e-3,)}, {"dot", "norm"}),  # too long, as the default is
        ({"radii": (1e-3,), "reference": "richardson"}, set()),  # from which nothing can be extrapolated
    ],
)
def test_the_size_is_not_known_where_no_radius_is_good(options, known):
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(20, dtype=torch.float64))
    batches = list(torch.randn(8, 20, dtype=torch.float64))
    model = torch.nn.ParameterList([weight])
    result = gradalign.tune(model, lambda x: (3e4 * weight * x).sin().mean(), batches, **options)
    assert {name for name, found in result.weights.items() if not math.isnan(found.term_size)} == known
