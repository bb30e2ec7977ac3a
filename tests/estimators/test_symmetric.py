"""`symmetric`: each half of the micro-batches is compared with the other."""

from __future__ import annotations

import pytest
from support.estimator_checks import FORMS, Case, check_heads, check_mean_over_orders, check_replay, check_term
from support.networks import Counting, Spectral

OBJECTIVES = ("dot", "norm")  # one displacement for all micro-batches of a half


def pairs(k):
    first, second = list(range((k + 1) // 2)), list(range((k + 1) // 2, k))
    return [(i, second, 0.5 / len(first)) for i in first] + [(i, first, 0.5 / len(second)) for i in second]


CASE = Case({"estimator": "symmetric"}, pairs, lambda k: (2 * k, 3 * k))


@pytest.mark.parametrize(("normalize", "difference", "telemetry"), FORMS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_term_is_that_of_double_backward(objective, normalize, difference, telemetry):
    check_term(CASE, objective, normalize, difference, telemetry)


@pytest.mark.parametrize("kind", [Spectral, Counting])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_displaced_passes_replay_random_numbers_and_buffers(objective, kind):
    check_replay(CASE, objective, kind)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_averaged_over_all_orders_it_is_the_gradient_of_A(objective):  # noqa: N802
    check_mean_over_orders(CASE.options, objective)


@pytest.mark.parametrize("normalize", ["none", "direction"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_heads_that_only_later_micro_batches_reach_count_as_zero_before(objective, normalize):
    check_heads(CASE, objective, normalize)
