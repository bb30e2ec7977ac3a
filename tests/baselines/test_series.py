"""Reptile, FOMAML and MAML against the series of Nichol et al. 2018 (arXiv:1803.02999, section 5.1), in all orders.

Their gradients, averaged over the order of k micro-batches, are AvgGrad - c inner_lr AvgGradInner + O(inner_lr^2) with
c = (k - 1) / 2 (Reptile, divided by k), k - 1 (FOMAML) and 2 (k - 1) (MAML).
"""

from __future__ import annotations

import itertools

import pytest
import torch
from support import oracle
from support.baseline_comparison import filled, relative
from support.networks import Awkward, make, trainable

from gradalign.baselines import FOMAML, MAML, Reptile

COEFFICIENTS = ((Reptile, lambda k: (k - 1) / 2), (FOMAML, lambda k: k - 1), (MAML, lambda k: 2 * (k - 1)))


def averaged(model, kind, loss_fn, batches, inner_lr):
    total = 0.0
    orders = list(itertools.permutations(batches))
    for order in orders:
        model.zero_grad()
        kind(model, inner_lr).backward(loss_fn, order)
        total = total + filled(model) / len(orders)
    return total


@pytest.mark.parametrize("k", [2, 3, 4])
@pytest.mark.parametrize(("kind", "coefficient"), COEFFICIENTS)
def test_the_series_to_first_order_in_inner_lr(kind, coefficient, k):
    model, loss_fn, batches = make(Awkward, k=k, rows=3)
    model.eval()  # no dropout: the same losses in every order
    gbar, term, _, _ = oracle.term(model, loss_fn, batches, "dot", "none", oracle.all_pairs(k))
    inner = term / 2  # AvgGradInner: mean over i != j of H_i g_j
    errors = []
    for inner_lr in (2e-3, 1e-3):
        slope = (averaged(model, kind, loss_fn, batches, inner_lr) - gbar) / inner_lr
        errors.append(relative(slope, -coefficient(k) * inner))
    assert errors[1] < 0.02
    assert 1.8 < errors[0] / errors[1] < 2.2  # what is left is of the next order


@pytest.mark.parametrize(("kind", "coefficient"), COEFFICIENTS[:2])
def test_on_a_quadratic_two_steps_are_the_series(kind, coefficient):
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1, bias=False).double()
    batches = [(torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 1, dtype=torch.float64)) for _ in range(2)]
    theta = torch.cat([p.detach().reshape(-1) for p in trainable(model)])
    hessians = [2 * x.T @ x / 4 for x, _ in batches]
    g = [hessian @ theta - 2 * (x.T @ y).view(-1) / 4 for hessian, (x, y) in zip(hessians, batches, strict=True)]
    expected = (g[0] + g[1]) / 2 - coefficient(2) * 0.1 * (hessians[0] @ g[1] + hessians[1] @ g[0]) / 2
    found = averaged(model, kind, lambda b: (model(b[0]) - b[1]).square().mean(), batches, 0.1)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
