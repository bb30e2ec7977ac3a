"""The statistics are those of small cases worked out by hand."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from benchmarks.quality.statistics import _acceleration, bootstrap, holm, sign_flip


def test_holm_multiplies_the_smallest_by_all_and_never_decreases():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_sign_flip_counts_the_flips_that_are_as_far_from_zero():
    assert sign_flip([1.0, 2.0, 3.0]) == 2 / 8
    assert sign_flip([1.0, -1.0]) == 1.0
    assert sign_flip([3.0, -1.0, 1.0]) == 6 / 8  # |3 +- 1 +- 1| >= 3 in three of four, with either sign
    assert sign_flip([1.0] * 10) == 2 / 2**10


@pytest.mark.parametrize("n", [1, 2, 7, 12, 16])
def test_all_flips_are_those_that_are_counted_one_by_one(n):
    for seed in range(3):
        x = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).mul(10).round() / 10
        means = torch.tensor([sum(flipped) for flipped in itertools.product(*((d, -d) for d in x.tolist()))])
        far = (means.abs() >= abs(sum(x.tolist())) - 1e-9).double().mean()
        assert sign_flip(x.tolist()) == pytest.approx(float(far), abs=1e-12)


def test_twenty_pairs_have_no_noise_of_drawn_flips():
    x = [1.0] * 19 + [-1.0]
    assert sign_flip(x, seed=0) == sign_flip(x, seed=1) == pytest.approx(2 * 21 / 2**20, rel=1e-12)


def test_sign_flip_of_many_pairs_is_near_the_normal_tail():
    x = torch.randn(40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = (x - x.mean()) / x.std(correction=0) + 0.3
    z = 0.3 * math.sqrt(40) / math.sqrt(1 + 0.3**2)  # the flipped mean has variance mean(x^2) / n
    assert sign_flip(x.tolist()) == pytest.approx(math.erfc(z / math.sqrt(2)), abs=0.012)
    assert sign_flip(x.tolist()) == sign_flip(x.tolist())


def test_the_acceleration_is_a_sixth_of_the_skewness_over_the_root_of_n():
    assert _acceleration(torch.tensor([0.0, 0.0, 0.0, 1.0])) == pytest.approx(1.1547005 / 12, rel=1e-6)
    assert _acceleration(torch.tensor([-1.0, 0.0, 1.0])) == 0.0


def test_the_interval_of_many_symmetric_differences_is_the_normal_one():
    x = torch.linspace(-1, 1, 101, dtype=torch.float64).pow(3) + 0.5
    low, high = bootstrap(x.tolist())
    half = 1.96 * float(x.std(correction=0)) / math.sqrt(101)
    assert (low, high) == pytest.approx((0.5 - half, 0.5 + half), abs=0.005)
    narrow = bootstrap(x.tolist(), level=0.68)
    assert narrow[1] - narrow[0] == pytest.approx((high - low) * 0.9945 / 1.96, rel=0.03)


def test_the_interval_leans_towards_the_long_tail():
    x = [0.0] * 9 + [1.0, 2.0]
    low, high = bootstrap(x)
    mean = sum(x) / len(x)
    assert high - mean > 1.2 * (mean - low)
    shifted = bootstrap([3 + 2 * value for value in x])
    assert shifted == pytest.approx((3 + 2 * low, 3 + 2 * high))


def test_equal_differences_have_a_point_for_an_interval():
    assert bootstrap([0.25] * 5) == (0.25, 0.25)
