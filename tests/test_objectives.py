"""The displacement of every objective, v = alpha x + beta g, on x = (1, 2, 2) and g = (0, 3, 4)."""

from __future__ import annotations

import pytest
import torch

from gradalign.objectives import OBJECTIVES, Dots, objective

X, G = torch.tensor([1.0, 2.0, 2.0], dtype=torch.float64), torch.tensor([0.0, 3.0, 4.0], dtype=torch.float64)
DOTS = Dots(X @ X, X @ G, G @ G)  # 9, 14, 25

# alpha, beta, whether the displacement contains the micro-batch's own gradient, whether x is a mean of unit gradients
EXPECTED = {
    "dot": (1.0, 0.0, False, False),
    "norm": (-1.0, 0.0, False, False),
    "variance": (1.0, -1.0, True, False),
    "cosine": (1 / 5, -14 / 125, True, True),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_displacement(name):
    found = objective(name)
    alpha, beta = found.coefficients(DOTS)
    assert (float(alpha), float(beta), found.own, found.unit) == pytest.approx(EXPECTED[name], rel=1e-15)
    assert float(DOTS.norm_of(alpha, beta)) == pytest.approx(float((alpha * X + beta * G).norm()), rel=1e-12)


def test_that_of_the_cosine_is_orthogonal_to_the_own_gradient():
    alpha, beta = objective("cosine").coefficients(DOTS)
    assert abs(float((alpha * X + beta * G) @ G)) < 1e-15


def test_a_length_whose_square_is_rounded_below_zero_is_zero():
    one = torch.ones((), dtype=torch.float64)
    assert float(Dots(one, one * (1 + 1e-15), one).norm_of(one, -one)) == 0


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="objective: expected one of 'cosine', 'dot', 'norm', 'variance'; got 'angle'"):
        objective("angle")
