import math

import pytest

from gradalign.cli.demo.paired import Interval, interval, t_quantile


@pytest.mark.parametrize(
    ("level", "degrees", "t"),
    # From the printed tables of Student's distribution, two-sided.
    [(0.95, 1, 12.706), (0.95, 2, 4.303), (0.95, 3, 3.182), (0.95, 9, 2.262), (0.95, 30, 2.042), (0.99, 5, 4.032)],
)
def test_t_quantiles_are_those_of_the_tables(level, degrees, t):
    assert t_quantile(level, degrees) == pytest.approx(t, abs=5e-4)


def test_an_interval_by_hand():
    # s = 1, so the half-width is 4.302653 / sqrt(3).
    assert interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 2.484138), abs=1e-6)


def test_fewer_than_three_seeds_have_no_interval_and_exclude_nothing():
    assert interval([5.0]) == (5.0, None)
    assert interval([5.0, 6.0]) == (5.5, None)
    assert not interval([5.0, 6.0]).excludes_zero


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("num", [1, 3])
def test_a_value_that_is_not_finite_leaves_no_interval(broken, num):
    found = interval([broken, *[1.0] * (num - 1)])
    assert math.isnan(found.mean)
    assert found.half_width is None
    assert not found.excludes_zero


def test_infinities_of_both_signs_leave_no_interval():
    assert math.isnan(interval([math.inf, -math.inf, 0.0]).mean)


@pytest.mark.parametrize(("mean", "excludes"), [(0.3, True), (-0.3, True), (0.1, False), (-0.1, False)])
def test_zero_is_excluded_where_the_mean_is_further_away_than_the_half_width(mean, excludes):
    assert Interval(mean, 0.2).excludes_zero is excludes
