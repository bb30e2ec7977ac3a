"""`leave_one_out`: every micro-batch is compared with all others, wherever their gradients are meanwhile."""

from __future__ import annotations

import pytest
from support import oracle
from support.estimator_checks import FORMS, Case, check_any_order, check_heads, check_replay, check_term
from support.measure import OBJECTIVES
from support.networks import Counting, Spectral

from gradalign.estimators import LeaveOneOut

CASES = {
    "device": Case({"estimator": "leave_one_out"}, oracle.all_pairs, lambda k: (2 * k, 3 * k)),
    "host": Case({"estimator": LeaveOneOut(gradients="host")}, oracle.all_pairs, lambda k: (2 * k, 3 * k)),
    "recompute": Case({"estimator": LeaveOneOut(gradients="recompute")}, oracle.all_pairs, lambda k: (3 * k, 4 * k)),
}


@pytest.mark.parametrize(("normalize", "difference", "telemetry"), FORMS)
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", CASES)
def test_the_term_is_that_of_double_backward(name, objective, normalize, difference, telemetry):
    check_term(CASES[name], objective, normalize, difference, telemetry)


@pytest.mark.parametrize("kind", [Spectral, Counting])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", CASES)
def test_displaced_passes_replay_random_numbers_and_buffers(name, objective, kind):
    check_replay(CASES[name], objective, kind)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", CASES)
def test_in_any_order_it_is_the_gradient_of_A(name, objective):  # noqa: N802
    check_any_order(CASES[name].options, objective)


@pytest.mark.parametrize("normalize", ["none", "direction"])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", CASES)
def test_heads_that_only_later_micro_batches_reach_count_as_zero_before(name, objective, normalize):
    check_heads(CASES[name], objective, normalize)
