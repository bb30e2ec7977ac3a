import pytest
from support.site_records import record

from gradalign.cli.demo.sites.record import NAMES


def test_the_summary_pairs_the_seeds():
    s = record(0.01, 0.02, 0.03)["summary"]
    assert s["num_seeds"] == 3
    assert set(s["arms"]) == set(NAMES)
    cosine = s["arms"]["cosine"]
    assert cosine["test"]["mean"] == pytest.approx(0.62)
    assert cosine["minus_plain"] == pytest.approx({"mean": 2.0, "half_width": 2.484138})
    assert cosine["minus_longer"] == pytest.approx({"mean": 1.0, "half_width": 2.484138})
    assert cosine["minus_reptile"] == pytest.approx({"mean": -2.0, "half_width": 2.484138})
    assert cosine["by_pointing_right"] == pytest.approx([0.1, 0.62, 0.95])
    assert (cosine["steps"], cosine["seconds"], cosine["cost_factor"]) == pytest.approx((2, 0.08, 4.0))
