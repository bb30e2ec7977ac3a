import json
import math

import matplotlib.image
import pytest
from support.demo_records import record

from gradalign.cli import places
from gradalign.cli.demo.reviews.plot import running_mean, save_plot


@pytest.mark.parametrize("gains", [(0.01,), (0.01, 0.02, 0.03)])
def test_the_plot_is_a_png_with_something_drawn(tmp_path, gains):
    save_plot(record(*gains), tmp_path / "demo.png")
    pixels = matplotlib.image.imread(tmp_path / "demo.png")
    assert pixels.shape[0] > 800
    assert pixels.shape[1] > 1200
    assert pixels[..., :3].std() > 0.05


def test_a_name_with_dollar_signs_is_no_formula(tmp_path):
    r = record(0.01)
    r["settings"]["model"] = "a$\\no_such_symbol$"
    save_plot(r, tmp_path / "demo.png")
    assert (tmp_path / "demo.png").stat().st_size > 10_000


def test_a_run_that_diverged_can_be_plotted_and_written(tmp_path):
    r = record(0.01)
    r["seeds"][0]["gradalign"]["losses"] = [math.nan, math.inf]
    r["seeds"][0]["gradalign"]["alignment"]["cosine"] = math.nan
    save_plot(r, tmp_path / "demo.png")
    assert (tmp_path / "demo.png").stat().st_size > 10_000
    places.write_json(tmp_path / "demo.json", r)
    assert json.loads((tmp_path / "demo.json").read_text())["seeds"][0]["gradalign"]["losses"] == [None, None]


def test_the_running_mean_is_over_earlier_values():
    assert running_mean([1.0, 3.0, 5.0, 7.0], window=2) == [1.0, 2.0, 4.0, 6.0]
