import argparse

import pytest

from gradalign.cli import options


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (options.count(1), "7", 7),
        (options.finite, "-2.5", -2.5),
        (options.positive, "1e9", 1e9),
        (options.share, "0", 0.0),
    ],
)
def test_what_fits_is_taken(parse, text, value):
    assert parse(text) == value


@pytest.mark.parametrize(
    ("parse", "text", "message"),
    [
        (options.count(2), "1", "expected an integer of at least 2; got '1'"),
        (options.count(0), "-1", "expected an integer of at least 0; got '-1'"),
        (options.count(0), "1.0", "expected an integer of at least 0; got '1.0'"),
        (options.finite, "nan", "expected a finite number; got 'nan'"),
        (options.positive, "0", "expected a number above 0; got '0'"),
        (options.positive, "inf", "expected a number above 0; got 'inf'"),
        (options.share, "1.1", "expected a share from 0 to 1; got '1.1'"),
        (options.share, "half", "expected a number; got 'half'"),
    ],
)
def test_what_does_not_fit_is_told_expected_and_got(parse, text, message):
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        parse(text)
