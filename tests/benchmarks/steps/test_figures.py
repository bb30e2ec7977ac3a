from __future__ import annotations

import pytest
from matplotlib import pyplot as plt
from support.rows import HEADLINE, failed, result, row, split

from benchmarks.steps import figures
from benchmarks.steps.workloads import Workload


@pytest.fixture
def axes():
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


def mlp(size):
    return Workload("mlp", 8, 4, size)


SCALING = [
    row("double backward", mlp(1000), ratio=3.0, parameters=1088),
    row("double backward", mlp(10_000), ratio=4.0, parameters=10_200),
    failed("double backward", workload=mlp(100_000)),
    failed("full Hessian", "took longer than 45 s", workload=mlp(10_000)),
]


def test_four_figures_as_png_and_svg(tmp_path):
    names = figures.save(result(row(), split(), row("prefix", ratio=1.9, peak_bytes=480e6), *SCALING), tmp_path)
    assert names == [
        f"minilm-{name}.{kind}" for name in ("cost", "memory", "scaling", "kernels") for kind in ("png", "svg")
    ]
    assert all((tmp_path / name).stat().st_size > 5000 for name in names)


def test_figures_of_nothing_are_empty_and_no_error(tmp_path):
    assert len(figures.save(result(), tmp_path)) == 8


def test_an_svg_is_the_same_every_time(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "FIGURES", {"cost": figures.cost})
    texts = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        figures.save(result(row(), split()), tmp_path / folder)
        texts.append((tmp_path / folder / "minilm-cost.svg").read_text())
    assert texts[0] == texts[1]


def test_cost_has_a_bar_a_method_with_the_passes_marked(axes):
    figures.cost(axes, result(row(), split(), failed("prefix")))
    assert sorted(bar.get_width() for bar in axes.patches) == [1.0, 1.25]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["split m=k/4", "plain"]
    assert [list(line.get_xdata()) for line in axes.lines if list(line.get_xdata()) == [1.25, 1.25]]


def test_memory_is_in_copies_above_plain(axes):
    figures.memory(axes, result(row(), split()))
    assert [bar.get_width() for bar in axes.patches] == [1.0]
    assert "1.0 (40 MB)" in axes.texts[0].get_text()


def test_scaling_marks_where_a_method_ends(axes):
    figures.scaling(axes, result(*SCALING))
    curve = next(line for line in axes.lines if line.get_label() == "double backward")
    assert (list(curve.get_xdata()), list(curve.get_ydata())) == ([1088, 10_200], [3.0, 4.0])
    crosses = [(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines if line.get_marker() == "x"]
    assert crosses == [(100_000, 4.0), (10_000, 1.0)]
    assert [text.get_text() for text in axes.texts] == ["out of memory", "too long"]
    assert figures._short("ValueError: x") == "failed"


def test_kernels_are_shares_of_the_bandwidth(axes):
    figures.kernels(axes, result(split()))
    (curve,) = [line for line in axes.lines if line.get_label() == "perturb_"]
    assert (list(curve.get_xdata()), list(curve.get_ydata())) == ([160_000_000], [0.8])
    assert HEADLINE.name
