import math

import pytest

from gradalign.cli.demo.paired import Interval
from gradalign.cli.demo.verdict import short_verdict, shown, verdict


@pytest.mark.parametrize(
    ("difference", "seeds", "words"),
    [
        (Interval(2.0, None), 1, "= +2.00 points on one seed, which cannot show a difference; --seeds 3 or more"),
        (Interval(2.0, None), 2, "on 2 seeds, which cannot show a difference"),
        (
            Interval(0.5, 1.0),
            3,
            "95% interval -0.50 to +1.50 over 3 paired seeds: it includes 0, so no difference is shown.",
        ),
        (
            Interval(-2.0, 1.0),
            5,
            "-3.00 to -1.00 over 5 paired seeds: it excludes 0, which without a difference happens by chance in one of 20",
        ),
    ],
)
def test_the_verdict_claims_no_more_than_the_seeds_show(difference, seeds, words):
    assert words in verdict("At equal steps: gradalign minus AdamW", difference, seeds)


def test_the_short_verdict_leaves_the_advice_out():
    words = "A minus B = +2.00 points, 95% interval +1.00 to +3.00 over 3 paired seeds: it excludes 0"
    assert short_verdict("A minus B", Interval(2.0, 1.0), 3) == words


def test_an_interval_is_shown_with_its_unit_and_without_a_missing_half_width():
    assert shown(Interval(0.62, 0.025), 1, "%") == "62.0% +/- 2.5"
    assert shown(Interval(2.0, None), 2, "", "+") == "+2.00"
    assert shown(Interval(math.nan, None), 1, "%") == "not finite"


def test_no_verdict_on_a_training_that_diverged():
    for words in (
        verdict("A minus B", Interval(math.nan, None), 3),
        short_verdict("A minus B", Interval(math.nan, None), 3),
    ):
        assert words.rstrip(".") == "A minus B is not finite: a training diverged"
