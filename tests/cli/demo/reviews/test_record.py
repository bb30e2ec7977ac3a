import pytest
from support.demo_records import record, seed

from gradalign.cli.demo.reviews.record import summary


def test_the_summary_pairs_the_seeds():
    s = record(0.01, 0.02, 0.03)["summary"]
    assert s["num_seeds"] == 3
    assert s["accuracy"]["adamw"]["mean"] == pytest.approx(0.6)
    assert s["accuracy"]["adamw_equal_time"]["mean"] == pytest.approx(0.65)
    assert s["accuracy"]["gradalign"]["mean"] == pytest.approx(0.62)
    assert s["difference_points"]["equal_steps"] == pytest.approx({"mean": 2.0, "half_width": 2.484138})
    assert s["difference_points"]["equal_time"] == pytest.approx({"mean": -3.0, "half_width": 2.484138})
    assert s["train_loss"] == pytest.approx({"adamw": 0.6, "gradalign": 0.65})
    assert s["seconds_per_step"] == pytest.approx({"adamw": 0.2, "gradalign": 0.3})  # of the equal steps only
    assert (s["cost_factor"], s["further_adamw_steps"]) == (1.25, 1)
    assert s["alignment_after"]["gradalign"]["dot"] == 3.0


def test_without_further_steps_equal_time_is_equal_steps():
    cheap = seed(0, 0.0) | {"further_adamw_steps": 0}
    cheap["adamw"]["accuracies"].pop()
    assert summary([cheap])["accuracy"]["adamw_equal_time"]["mean"] == 0.6
