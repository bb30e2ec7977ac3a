"""The sum of Hessian-vector products: what is subtracted from it, and whose memory it has."""

from __future__ import annotations

import pytest
import torch
from support.begun_step import Bowl, begun_step

from gradalign.engine.term import Term

G, RATIO = [3.0, 4.0], 0.5


def begun(rescaled=False):
    space = begun_step(Bowl([1.0, 2.0])).space
    return Term(space, rescaled=rescaled), [torch.tensor(G, dtype=torch.float64)], space.scalar(RATIO)


@pytest.mark.parametrize("give", [False, True])
def test_gradients_are_subtracted_one_after_the_other(give):
    term, g, ratio = begun()
    kept = g[0]
    term.subtract(g, ratio, give=give)
    assert term.vector[0].tolist() == [-1.5, -2.0]
    assert (term.vector[0] is kept) is give
    assert give or kept.tolist() == G
    term.subtract([torch.tensor(G, dtype=torch.float64)], ratio, give=give)
    assert term.vector[0].tolist() == [-3.0, -4.0]


def test_the_first_one_reads_and_writes_no_zeros(monkeypatch):
    term, g, ratio = begun()
    monkeypatch.setattr(torch, "zeros_like", lambda t: pytest.fail("zeros for something that is written anyhow"))
    term.subtract(g, ratio)
    assert term.vector[0].tolist() == [-1.5, -2.0]


def test_a_parameter_without_a_gradient_stays_without_a_term():
    term, _, ratio = begun()
    term.subtract([None], ratio)
    assert term.vector == [None]


@pytest.mark.parametrize("give", [False, True])
def test_the_squares_of_what_was_subtracted_are_noted_where_the_term_is_rescaled(give):
    term, g, ratio = begun(rescaled=True)
    term.subtract(g, ratio, give=give)
    assert float(term.parts) == 25 * RATIO**2
    term.subtract([torch.tensor(G, dtype=torch.float64)], ratio, give=give)
    assert float(term.parts) == 2 * 25 * RATIO**2
