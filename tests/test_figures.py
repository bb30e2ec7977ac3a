"""The scripts behind the figures of the documentation run, and every figure there is has its script."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

FIGURES = Path(__file__).parents[1] / "docs" / "figures"
PICTURES = {
    "objectives": ["objectives.png"],
    "estimators": ["estimators.png"],
    "weight": ["weight.png"],
    "multi_task": ["tasks.png", "sketch.png"],
    "telemetry": ["noise-scale.png"],
}
EFFORT = {"objectives": 2, "estimators": 3, "weight": 10, "multi_task": 2, "telemetry": 20}


@pytest.fixture
def load(scripts):
    return scripts(FIGURES)


@pytest.mark.parametrize("name", PICTURES)
def test_a_script_draws_its_pictures(load, name, tmp_path):
    pytest.importorskip("matplotlib")
    load(name).draw(tmp_path, EFFORT[name])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(PICTURES[name])


def test_the_pages_show_what_the_scripts_draw():
    shown = set()
    for page in FIGURES.parent.glob("*.md"):
        shown |= set(re.findall(r"\]\(figures/([^)]+\.png)\)", page.read_text()))
    drawn = {picture for pictures in PICTURES.values() for picture in pictures}
    assert shown == drawn | {"tune-minilm.png"}  # of `gradalign tune`
    assert shown == {path.name for path in FIGURES.glob("*.png")}


def test_one_estimate_errs_as_documented(load):
    found = load("estimators").errors(20)
    assert [cost for cost, _ in found.values()] == [9 / 8, 10 / 8, 12 / 8, 15 / 8, 14 / 8, 12 / 8, 2, 2]
    errors = {name: error for name, (_, error) in found.items()}
    assert errors["leave_one_out"] < errors["prefix"] < errors["split, m = 1"]


def test_momentum_agrees_with_the_other_estimators(load):
    found = load("estimators").agreement(0.001, 30)
    assert found["momentum"] > found["leave_one_out"] > found["split"] > 0
    assert found["momentum with leave_one_out"] > 0.4


def test_momentum_points_backwards_where_the_gradient_turns_faster_than_its_mean(load):
    found = load("estimators").agreement(0.1, 30)
    assert found["momentum"] < 0 < found["leave_one_out"]


def test_the_noise_scale_of_a_window_is_near_the_whole_datas(load):
    _, estimates, true = load("telemetry").scales(0.1, 40)
    assert estimates == pytest.approx(true, rel=0.5)
