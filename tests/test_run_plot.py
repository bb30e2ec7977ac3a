"""The plot of a run draws what the rows hold, from a file or from a trainer's history."""

from __future__ import annotations

import json

import pytest
from matplotlib.axes import Axes

from gradalign.telemetry import plot

ROWS = [
    {"step": 10, "loss": 9.0, "align/loss": 2.0, "align/dot": 0.5, "align/grad_norm": 1.5, "align/term_norm": 3.0},
    {"step": 15, "eval_loss": 1.7},
    {"step": 20, "loss": 8.0, "align/loss": 1.0, "align/dot": float("nan"), "align/grad_norm": 1.0},
]


@pytest.fixture
def drawn(monkeypatch):
    """Label -> (x, y) of every curve that is drawn."""
    curves, original = {}, Axes.plot

    def noted(axes, x, y, *args, **kwargs):
        curves[kwargs["label"]] = (list(x), list(y))
        return original(axes, x, y, *args, **kwargs)

    monkeypatch.setattr(Axes, "plot", noted)
    return curves


@pytest.mark.parametrize("as_file", [False, True])
def test_every_quantity_that_a_row_has_is_drawn(as_file, drawn, tmp_path):
    run = ROWS
    if as_file:
        run = tmp_path / "run.jsonl"
        run.write_text("\n\n".join(json.dumps(row) for row in ROWS) + "\n")
    plot(run, tmp_path / "run.png")
    assert drawn == {
        "loss": ([10, 20], [2, 1]),
        "dot": ([10], [0.5]),
        "term_norm": ([10], [3]),
        "grad_norm": ([10, 20], [1.5, 1]),
    }
    assert (tmp_path / "run.png").stat().st_size > 1000


def test_without_steps_and_without_a_prefix(drawn, tmp_path):
    plot([{"loss": 3, "cosine": 0.1}, {"loss": 2}], tmp_path / "run.svg")
    assert drawn == {"loss": ([0, 1], [3, 2]), "cosine": ([0], [0.1])}


def test_another_prefix(drawn, tmp_path):
    plot([{"train/align/dot": 3.0, "loss": 1.0}], tmp_path / "run.png", prefix="train/align/")
    assert drawn == {"dot": ([0], [3])}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"accuracy": 0.5}',
            "plot: expected rows with fields of gradalign.telemetry.logs, such as align/grad_norm; got 1",
        ),
        ("step,loss", "plot: expected a JSON object on every line; got 'step,loss' in line 1"),
        ("\n[1]", "plot: expected a JSON object on every line; got list in line 2"),
    ],
)
def test_a_run_that_cannot_be_drawn(text, message, tmp_path):
    (tmp_path / "run.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        plot(tmp_path / "run.jsonl", tmp_path / "run.png")
    assert not (tmp_path / "run.png").exists()


@pytest.mark.parametrize("rows", [{"align/dot": 1.0}, [], [1.0]])
def test_what_is_no_list_of_rows_is_refused(rows, tmp_path):
    with pytest.raises(ValueError, match="plot: expected a list with a mapping for each step"):
        plot(rows, tmp_path / "run.png")


def test_a_step_that_is_none_counts_as_not_given(drawn, tmp_path):
    plot([{"step": None, "align/dot": 1.0}, {"step": 5, "align/dot": 2.0}], tmp_path / "run.png")
    assert drawn == {"dot": ([0, 5], [1, 2])}
