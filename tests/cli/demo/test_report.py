import json
import math

import matplotlib.image
import pytest

from gradalign.cli.demo import plot as demo_plot
from gradalign.cli.demo import record as demo_record
from gradalign.cli.demo import report as demo_report
from gradalign.cli.demo.paired import Interval

SETTINGS = {
    "model": "bert-tiny",
    "data": "Rotten Tomatoes snippets",
    "objective": "dot",
    "weight": 0.001,
    "normalize": "direction",
    "label_noise": 0.0,
    "train_size": 100,
    "test_size": 50,
    "k": 8,
    "batch": 4,
    "device": "cpu",
}


def curve(losses, seconds, accuracies, dot):
    alignment = {"dot": dot, "cosine": dot / 10, "grad_norm": 1.0, "noise_scale": 2.0}
    return {"losses": losses, "seconds": seconds, "accuracies": accuracies, "alignment": alignment}


def seed(number, gain):
    """Two steps of both, one further step of AdamW's; gradalign's accuracy is `gain` above AdamW's 0.6."""
    return {
        "seed": number,
        "steps": 2,
        "further_adamw_steps": 1,
        "cost_factor": 1.25,
        "data": {"train": 100, "test": 50},
        "alignment_before": {"dot": 1.0, "cosine": 0.5, "grad_norm": 1.0, "noise_scale": 2.0},
        "adamw": curve([0.7, 0.5, 0.4], [0.1, 0.3, 0.1], [(1, 0.5), (2, 0.6), (3, 0.65)], dot=2.0),
        "gradalign": curve([0.7, 0.6], [0.2, 0.4], [(1, 0.5), (2, 0.6 + gain)], dot=3.0),
    }


def record(*gains, memory=None):
    seeds = [seed(i, gain) for i, gain in enumerate(gains)]
    return demo_record.run_record(SETTINGS, seeds, memory or {"adamw": 2**20, "gradalign": 3 * 2**20}, 12.34)


def test_the_summary_pairs_the_seeds():
    s = record(0.01, 0.02, 0.03)["summary"]
    assert s["num_seeds"] == 3
    assert s["accuracy"]["adamw"]["mean"] == pytest.approx(0.6)
    assert s["accuracy"]["adamw_equal_time"]["mean"] == pytest.approx(0.65)
    assert s["accuracy"]["gradalign"]["mean"] == pytest.approx(0.62)
    assert s["difference_points"]["equal_steps"] == pytest.approx({"mean": 2.0, "half_width": 2.484138})
    assert s["difference_points"]["equal_time"] == pytest.approx({"mean": -3.0, "half_width": 2.484138})
    assert s["train_loss"] == pytest.approx({"adamw": 0.6, "gradalign": 0.65})
    assert s["seconds_per_step"] == pytest.approx({"adamw": 0.2, "gradalign": 0.3})  # equal steps alone
    assert (s["cost_factor"], s["further_adamw_steps"]) == (1.25, 1)
    assert s["alignment_after"]["gradalign"]["dot"] == 3.0


def test_equal_time_is_equal_steps_where_there_was_no_time_to_give():
    cheap = seed(0, 0.0) | {"further_adamw_steps": 0}
    cheap["adamw"]["accuracies"].pop()
    assert demo_record.summary([cheap])["accuracy"]["adamw_equal_time"]["mean"] == 0.6


def test_the_record_names_machine_versions_date_and_settings():
    r = record(0.01)
    assert {"gradalign", "date", "machine", "versions", "settings", "seeds", "summary", "backend"} <= set(r)
    assert r["date"].endswith("+00:00")
    assert r["versions"]["torch"]
    assert r["machine"]["cpu"]["model"]
    assert json.loads(json.dumps(demo_record.as_json(r)))["seeds"][0]["adamw"]["accuracies"][-1] == [3, 0.65]


def test_json_has_null_for_what_is_not_finite():
    assert demo_record.as_json({"a": [math.nan, 1.0], "b": (math.inf,), "c": 2}) == {
        "a": [None, 1.0],
        "b": [None],
        "c": 2,
    }


def test_the_rows_of_the_table():
    r = record(0.01, 0.02, 0.03)
    rows = {name: cells for name, *cells in demo_report.rows(r["summary"], r["peak_memory_bytes"])}
    assert rows["optimizer steps"] == ["2", "3", "2"]
    assert rows["test accuracy"] == ["60.0% +/- 0.0", "65.0% +/- 0.0", "62.0% +/- 2.5"]
    assert rows["gradalign minus this"] == ["+2.00 +/- 2.48", "-3.00 +/- 2.48", ""]
    assert rows["alignment dot"] == ["1 -> 2", "", "1 -> 3"]
    assert rows["alignment cosine"] == ["0.5 -> 0.2", "", "0.5 -> 0.3"]
    assert rows["seconds per step"] == ["0.2000", "", "0.3000"]
    assert rows["cost factor"] == ["1", "", "1.25"]
    assert rows["peak memory"] == ["1 MiB", "", "3 MiB"]


def test_one_seed_has_no_interval_in_the_table():
    rows = {name: cells for name, *cells in demo_report.rows(record(0.01)["summary"], {"adamw": 0, "gradalign": 0})}
    assert rows["test accuracy"] == ["60.0%", "65.0%", "61.0%"]


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
            "-3.00 to -1.00 over 5 paired seeds: it leaves out 0, as one in 20 does by chance",
        ),
    ],
)
def test_the_verdict_claims_no_more_than_the_seeds_show(difference, seeds, words):
    assert words in demo_report.verdict(difference, "equal steps", seeds)


def test_label_noise_and_too_few_seeds_are_said():
    r = record(0.01)
    assert demo_report.conditions(r).startswith(
        "One seed, too few for an interval; 100 texts for training and 50 for the test"
    )
    assert "(30% wrong labels)" in demo_report.title(SETTINGS | {"label_noise": 0.3})


@pytest.mark.parametrize("gains", [(0.01,), (0.01, 0.02, 0.03)])
def test_the_plot_is_a_png(tmp_path, gains):
    demo_plot.save_plot(record(*gains), tmp_path / "demo.png")
    pixels = matplotlib.image.imread(tmp_path / "demo.png")
    assert pixels.shape[0] > 800
    assert pixels.shape[1] > 1200
    assert pixels[..., :3].std() > 0.05  # something is drawn


def test_a_run_that_diverged_can_be_drawn_and_written(tmp_path):
    r = record(0.01)
    r["seeds"][0]["gradalign"]["losses"] = [math.nan, math.inf]
    r["seeds"][0]["gradalign"]["alignment"]["cosine"] = math.nan
    demo_plot.save_plot(r, tmp_path / "demo.png")
    assert (tmp_path / "demo.png").stat().st_size > 10_000
    json.dumps(demo_record.as_json(r), allow_nan=False)


def test_the_mean_curve_keeps_the_last_point_of_a_shorter_one():
    assert demo_plot.mean_curve([[(1.0, 10.0), (2.0, 20.0)], [(3.0, 30.0)]]) == [(2.0, 20.0), (2.5, 25.0)]


def test_the_running_mean_looks_back():
    assert demo_plot.running_mean([1.0, 3.0, 5.0, 7.0], window=2) == [1.0, 2.0, 4.0, 6.0]
