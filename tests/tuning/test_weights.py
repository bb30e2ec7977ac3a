import pytest
from support import oracle
from support.measure import exact_term
from support.tuning_cases import two_layers

import gradalign
from gradalign.tuning import STARTING_WEIGHTS


@pytest.mark.parametrize("objective", sorted(STARTING_WEIGHTS))
def test_the_size_of_the_term_is_that_of_the_exact_one(objective):
    model, loss_fn, batches = two_layers()
    term, g, _ = exact_term(model, loss_fn, batches, objective, "direction", oracle.split_pairs(8, 2))
    found = gradalign.tune(model, loss_fn, batches, radii=(1e-3,)).weights[objective]
    assert found.value == STARTING_WEIGHTS[objective]
    assert found.term_size == pytest.approx(found.value * float(term.norm() / g.mean(0).norm()), rel=1e-3)
    assert found.trial
