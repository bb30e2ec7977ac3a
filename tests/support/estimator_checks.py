"""What every estimator promises, checked against double backward.

The tests of an estimator say in a `Case` which micro-batches it compares with which; the checks are the same for all.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch

from support import oracle
from support.measure import by_hand, exact_term, measured_term, relative
from support.networks import Awkward, make

K = 6

# Telemetry changes which gradients are looked at alone, not what a normalisation does with the term: one of them is enough.
FORMS = [
    ("none", "central", False),
    ("direction", "forward", False),
    ("direction", "central", True),
    ("gradient", "forward", True),
]


class Case(NamedTuple):
    """An estimator with its options.

    Attributes:
        options: of `GradAlign`.
        pairs: k -> (micro-batch, those it is compared with, its weight in the term), for every micro-batch that is compared.
        passes: k -> the number of passes with forward and with central differences.
    """

    options: dict[str, Any]
    pairs: Callable[[int], list[tuple[int, list[int], float]]]
    passes: Callable[[int], tuple[int, int]]


def check_term(case, objective, normalize, difference, telemetry):
    """The term, its norm, the number of passes and, with telemetry, the agreement of all pairs."""
    model, loss_fn, batches = make(Awkward, k=K)
    options = {"objective": objective, "normalize": normalize, "difference": difference, "telemetry": telemetry}
    found, aligner = measured_term(model, loss_fn, batches, radius=1e-5, **options, **case.options)
    expected, g, _ = exact_term(model, loss_fn, batches, objective, normalize, case.pairs(K))
    assert relative(found, expected) < 1e-4
    stats = aligner.stats
    assert stats.passes == case.passes(K)[difference == "central"]
    assert float(stats.term_norm) == pytest.approx(float(expected.norm()), rel=1e-4)
    if telemetry:
        assert float(stats.dot) == pytest.approx(mean_dot(g), rel=1e-9)
        assert float(stats.cosine) == pytest.approx(mean_cosine(g), rel=1e-9)


def mean_dot(g):
    """Mean inner product over pairs of the rows."""
    return float((g @ g.T)[~torch.eye(len(g), dtype=torch.bool)].mean())


def mean_cosine(g):
    """Mean cosine over pairs of the rows."""
    return mean_dot(g / g.norm(dim=1, keepdim=True))


def check_replay(case, objective, kind):
    """Displaced passes start from the random numbers and buffers of their base passes."""
    model, loss_fn, batches = make(kind, k=K)
    found, _ = measured_term(model, loss_fn, batches, objective=objective, radius=1e-5, **case.options)
    expected = by_hand(model, loss_fn, batches, objective, case.pairs(K), 1e-5)
    assert relative(found, expected) < 2e-3


def check_mean_over_orders(options, objective):
    """Averaged over all orders of the micro-batches, the term is the gradient of A over all pairs."""
    model, loss_fn, batches = make(Awkward, k=4)
    model.eval()  # dropout would tie the loss to the order
    orders = list(itertools.permutations(batches))
    found = sum(_of_order(options, objective, model, loss_fn, order) for order in orders) / len(orders)
    assert relative(found, _over_all_pairs(objective, model, loss_fn, batches)) < 1e-5


def check_any_order(options, objective):
    """In any order of the micro-batches the term is the gradient of A over all pairs."""
    model, loss_fn, batches = make(Awkward, k=4)
    model.eval()
    expected = _over_all_pairs(objective, model, loss_fn, batches)
    for order in (batches, batches[::-1], batches[2:] + batches[:2]):
        assert relative(_of_order(options, objective, model, loss_fn, order), expected) < 1e-5


def _over_all_pairs(objective, model, loss_fn, batches):
    return exact_term(model, loss_fn, batches, objective, "none", oracle.all_pairs(len(batches)))[0]


def _of_order(options, objective, model, loss_fn, order):
    model.zero_grad()
    form = {"objective": objective, "normalize": "none", "difference": "central"}
    return measured_term(model, loss_fn, order, radius=1e-4, **form, **options)[0]


class Heads(torch.nn.Module):
    """A trunk and one head a task: a micro-batch reaches one head only."""

    def __init__(self):
        super().__init__()
        self.trunk = torch.nn.Linear(3, 4)
        self.heads = torch.nn.ModuleList(torch.nn.Linear(4, 2) for _ in range(3))

    def forward(self, x, head):
        return self.heads[head](torch.tanh(self.trunk(x)))


def check_heads(case, objective, normalize):
    """A parameter that only later micro-batches reach has gradient zero in those before."""
    torch.manual_seed(0)
    model = Heads().double()
    batches = [(torch.randn(5, 3, dtype=torch.float64), head) for head in (0, 1, 1, 2, 0, 1)]

    def loss_fn(batch):
        return (model(*batch) - 1).square().mean()

    options = {"objective": objective, "normalize": normalize, "difference": "central"}
    found, _ = measured_term(model, loss_fn, batches, radius=1e-4, **options, **case.options)
    expected, _, _ = exact_term(model, loss_fn, batches, objective, normalize, case.pairs(len(batches)))
    assert relative(found, expected) < 1e-5
