"""The numbers of a displacement: of every objective on x = (1, 2, 2) and g = (0, 3, 4), and native against plain torch."""

from __future__ import annotations

import math

import pytest
import torch

from gradalign.backends import native, reference, reference_scalars
from gradalign.objectives import OBJECTIVES, objective

X, G = torch.tensor([1.0, 2.0, 2.0], dtype=torch.float64), torch.tensor([0.0, 3.0, 4.0], dtype=torch.float64)
SUMS = torch.stack((X @ X, X @ G, G @ G))  # 9, 14, 25
RADIUS = 0.5

# v = alpha x + beta g
EXPECTED = {"dot": (1.0, 0.0), "norm": (-1.0, 0.0), "variance": (1.0, -1.0), "cosine": (1 / 5, -14 / 125)}

BACKENDS = [reference, native] if native.why_unavailable() is None else [reference]
each_backend = pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.NAME)


def number(value):
    return torch.full((), value, dtype=torch.float64)


def aim(backend, name, sums=SUMS, scale_x=1.0, own=1.0, part=1.0, others=False, rounding=0.0):
    found = objective(name)
    scales = number(scale_x), number(own)
    return backend.aim(sums, *scales, RADIUS, found.alpha, found.beta, part, found.unit, others, rounding)


@each_backend
@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_displacement_has_the_direction_of_the_objective_and_the_length_of_the_radius(backend, name):
    alpha, beta = EXPECTED[name]
    v = alpha * X + beta * G
    scale_x, scale_y, eps, norm, gradient_norm = aim(backend, name).tolist()
    assert torch.allclose(scale_x * X + scale_y * G, RADIUS * v / v.norm(), rtol=1e-14, atol=0)
    assert (eps, norm) == pytest.approx((RADIUS / float(v.norm()), float(v.norm())), rel=1e-14)
    assert gradient_norm == pytest.approx(5.0 if name == "cosine" else 3.0, rel=1e-15)


@each_backend
@pytest.mark.parametrize("name", OBJECTIVES)
def test_stored_gradients_are_scaled(backend, name):
    """Stored are x / 4 and g / 2: the displacement is the same."""
    stored = SUMS * torch.tensor([1 / 16, 1 / 8, 1 / 4], dtype=torch.float64)
    first, second, *rest = aim(backend, name, stored, scale_x=4.0, own=2.0).tolist()
    plain_first, plain_second, *plain_rest = aim(backend, name).tolist()
    assert [first / 4, second / 2, *rest] == pytest.approx([plain_first, plain_second, *plain_rest], rel=1e-14)


@each_backend
@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("part", [1.0, 0.25])
def test_others_takes_the_own_gradient_out_of_the_sum(backend, name, part):
    share = 1 / 5 if name == "cosine" else part
    total = X + share * G
    sums = torch.stack((total @ total, total @ G, G @ G))
    first, second, *rest = aim(backend, name, sums, part=part, others=True).tolist()
    plain_first, plain_second, *plain_rest = aim(backend, name).tolist()
    found = first * total + second * G
    assert torch.allclose(found, plain_first * X + plain_second * G, rtol=1e-13, atol=1e-15)
    assert rest == pytest.approx(plain_rest, rel=1e-13)


@each_backend
def test_the_displacement_of_the_cosine_is_orthogonal_to_the_own_gradient(backend):
    scale_x, scale_y, *_ = aim(backend, "cosine").tolist()
    assert abs(float((scale_x * X + scale_y * G) @ G)) < 1e-14


@each_backend
@pytest.mark.parametrize("sums", [(0.0, 0.0, 0.0), (1.0, 1.0 + 1e-15, 1.0), (math.inf,) * 3, (math.nan,) * 3], ids=str)
def test_nothing_is_displaced_without_a_length(backend, sums):
    """A length that is zero, whose square is rounded below zero, or that is not finite."""
    assert aim(backend, "variance", torch.tensor(sums, dtype=torch.float64)).tolist()[:3] == [0, 0, 0]


@each_backend
@pytest.mark.parametrize("name", ["variance", "cosine"])
@pytest.mark.parametrize("others", [False, True])
def test_what_is_left_of_gradients_that_cancel_is_not_displaced_along(backend, name, others):
    """x = g but for a part of 1e-8, or of 1e-4, at a right angle to g: the square of what is left is that part's."""
    for off, usable in ((1e-8, False), (1e-4, True)):
        x = torch.stack((X.norm(), torch.tensor(off, dtype=torch.float64)))
        g = torch.stack((X.norm(), torch.tensor(0.0, dtype=torch.float64)))
        total = x + (g / g.norm() if name == "cosine" else g) if others else x
        sums = torch.stack((total @ total, total @ g, g @ g))
        first, second, eps, norm, _ = aim(backend, name, sums, others=others, rounding=2.0**-36).tolist()
        found = first * total + second * g
        if usable:
            assert torch.allclose(found, torch.tensor([0.0, RADIUS], dtype=torch.float64), atol=1e-4 * RADIUS)
        else:
            assert (first, second, eps, norm) == (0, 0, 0, 0)


@each_backend
@pytest.mark.parametrize("direction", [True, False])
def test_what_was_reached(backend, direction):
    """d = eps v with eps = 1/4 and |d| = 2; a delta of length 1 at 60 degrees to it."""
    aimed = torch.tensor([0, 0, 0.25, 8, 0], dtype=torch.float64)
    eps, q, cosine = backend.reached(torch.tensor([1.0, 4.0, 1.0], dtype=torch.float64), aimed, direction).tolist()
    assert eps == pytest.approx(0.25 / 4, rel=1e-15)
    assert q == pytest.approx(1 / 0.5 if direction else 2 / (0.25 / 4), rel=1e-15)
    assert cosine == pytest.approx(0.5, rel=1e-15)


@each_backend
@pytest.mark.parametrize(
    ("sums", "expected"),
    [((0.0, 0.0, 0.0), [0, 0, 1]), ((0.0, 4.0, 0.0), [0, 0, 0]), ((-1.0, 4.0, 1.0), [-0.25, 0, -0.5])],
)
def test_a_displacement_that_led_nowhere_or_back_has_no_quotient(backend, sums, expected):
    aimed = torch.ones(5, dtype=torch.float64)
    assert backend.reached(torch.tensor(sums, dtype=torch.float64), aimed, False).tolist() == expected


@pytest.mark.skipif(len(BACKENDS) == 1, reason=str(native.why_unavailable()))
def test_native_is_plain_torch():
    """But for the last bits: torch's square root is not always the nearest number."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        size = 10 ** (12 * torch.rand(2, generator=generator, dtype=torch.float64) - 6)
        x, g = torch.randn(2, 4, generator=generator, dtype=torch.float64) * size[:, None]
        sums = torch.stack((x @ x, x @ g, g @ g))
        for name in OBJECTIVES:
            options = {"scale_x": 0.7, "own": 3.0, "part": 0.3}
            found, expected = (aim(backend, name, sums, **options) for backend in (native, reference))
            assert torch.allclose(found, expected, rtol=1e-14, atol=0)
            asked = torch.rand(3, generator=generator, dtype=torch.float64)
            found, expected = (backend.reached(asked, expected, True) for backend in (native, reference_scalars))
            assert torch.allclose(found, expected, rtol=1e-14, atol=0)


@pytest.mark.skipif(len(BACKENDS) == 1, reason=str(native.why_unavailable()))
@pytest.mark.parametrize(
    "sums", [SUMS.float(), SUMS[:2], torch.empty(6, dtype=torch.float64)[::2]], ids=["float32", "two", "strided"]
)
def test_native_refuses_what_is_no_result_of_an_op(sums):
    with pytest.raises(ValueError, match="expected the float64 result of another op"):
        aim(native, "dot", sums)
    with pytest.raises(ValueError, match="expected the float64 result of another op"):
        native.reached(sums, torch.ones(5, dtype=torch.float64), True)
