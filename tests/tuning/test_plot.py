import sys
from dataclasses import replace

import matplotlib.image
import pytest

from gradalign.tuning.curve import Point
from gradalign.tuning.plot import save_plot

CURVE = [Point(r, e, e**2, 1 - e, 1.0, e) for r, e in ((0.01, 0.3), (0.1, 0.1), (1.0, 0.5))]
RADIUS = {"forward": 0.1, "central": 0.1}


@pytest.mark.parametrize("uncertainty", [None, 0.02])
def test_the_plot_is_an_image_with_something_drawn(tmp_path, uncertainty):
    save_plot(tmp_path / "errors.png", CURVE, RADIUS, uncertainty, "title")
    assert matplotlib.image.imread(tmp_path / "errors.png").std() > 0.05


@pytest.mark.parametrize("error", [float("nan"), float("inf"), 0.0])
def test_errors_that_have_no_logarithm_leave_the_displacement(tmp_path, error):
    save_plot(tmp_path / "errors.png", [replace(p, forward=error, central=error) for p in CURVE], RADIUS, None, "title")
    assert matplotlib.image.imread(tmp_path / "errors.png").std() > 0.05


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="expected matplotlib; got none; pip install matplotlib"):
        save_plot(tmp_path / "errors.png", CURVE, RADIUS, None, "title")
