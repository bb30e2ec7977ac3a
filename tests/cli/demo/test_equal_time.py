import pytest

from gradalign.cli.demo.equal_time import cost_factor, extra_steps


def test_the_cost_factor_is_the_median_of_paired_steps():
    assert cost_factor([1.0, 2.0, 10.0], [1.5, 2.4, 12.5]) == pytest.approx(1.25)


@pytest.mark.parametrize(
    ("plain", "aligned", "extra"),
    [
        ([1.0] * 8, [1.25] * 8, 2),  # 8 steps of 1.25 s pay for 10 of 1 s
        ([1.0] * 10, [1.26] * 10, 3),  # rounded
        ([1.0] * 10, [0.9] * 10, 0),  # no extra time
        ([1.0, 1.0, 9.0, 1.0], [1.5, 1.5, 1.5, 1.5], 2),  # one slow step changes nothing
    ],
)
def test_extra_steps_are_those_that_the_extra_time_pays_for(plain, aligned, extra):
    assert extra_steps(len(aligned), cost_factor(plain, aligned)) == extra


@pytest.mark.parametrize(
    ("plain", "aligned", "factor"),
    [
        ([0.0, 0.01, 0.0, 0.01], [0.01, 0.0, 0.01, 0.01], 1.5),
        ([0.0, 0.01], [0.03, 0.01, 5.0], 4.0),  # steps without a partner do not count
        ([0.0, 0.0], [0.0, 0.01], 1.0),
    ],
)
def test_a_clock_that_is_coarser_than_a_step_gives_the_quotient_of_the_sums(plain, aligned, factor):
    assert cost_factor(plain, aligned) == pytest.approx(factor)
