"""`exact`: the term over all pairs by double backward."""

from __future__ import annotations

import pytest
import torch
from support import oracle
from support.estimator_checks import FORMS, Case, check_heads, check_mean_over_orders, check_term
from support.measure import OBJECTIVES
from support.networks import Counting, make

import gradalign

CASE = Case({"estimator": "exact"}, oracle.all_pairs, lambda k: (2 * k, 2 * k))


@pytest.mark.parametrize(("normalize", "difference", "telemetry"), FORMS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_term_is_that_of_double_backward(objective, normalize, difference, telemetry):
    check_term(CASE, objective, normalize, difference, telemetry)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_averaged_over_all_orders_it_is_the_gradient_of_A(objective):  # noqa: N802
    check_mean_over_orders(CASE, objective)


@pytest.mark.parametrize("normalize", ["none", "direction"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_heads_that_only_later_micro_batches_reach_count_as_zero_before(objective, normalize):
    check_heads(CASE, objective, normalize)


def test_exact_says_what_to_do_about_fused_attention():
    model = torch.nn.Linear(8, 8)

    def loss_fn(x):
        q = model(x)
        return torch.nn.functional.scaled_dot_product_attention(q, q, q).square().mean()

    with pytest.raises(RuntimeError, match=r"exact: expected twice differentiable operations; .*SDPBackend.MATH"):
        gradalign.GradAlign(model, 0.1, estimator="exact").backward(loss_fn, list(torch.randn(2, 1, 2, 5, 8)))
    assert model.weight.grad is None


def test_exact_refuses_a_backward_it_would_never_call():
    model, loss_fn, batches = make(Counting)
    aligner = gradalign.GradAlign(model, 0.1, estimator="exact")
    with pytest.raises(ValueError, match="backward: expected None with Exact"):
        aligner.backward(loss_fn, batches, backward=torch.Tensor.backward)
    aligner.backward(loss_fn, batches)
