import pytest

from gradalign.tuning.table import align_columns, percent


@pytest.mark.parametrize(
    ("fraction", "text"), [(0.00013, "0.013%"), (0.5, "50%"), (0.994, "99%"), (1.0, "100%"), (12.345, "1234%")]
)
def test_percentages_have_two_digits_below_100(fraction, text):
    assert percent(fraction) == text


def test_columns_have_equal_width():
    rows = [("radius", "error", ""), ("0.1", "12%", "<- forward")]
    assert align_columns(rows) == "radius  error\n0.1       12%  <- forward"
