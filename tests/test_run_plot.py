"""The plot of a run draws what the rows hold, from a file or from a trainer's history."""

from __future__ import annotations

import json
from fractions import Fraction

import numpy
import pytest
import torch
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


def test_a_line_ends_where_a_newline_is_and_not_at_other_separators(drawn, tmp_path):
    rows = [{"align/dot": 1.0, "text": "a\u2028b\x85c\x0cd"}, {"align/dot": 2.0}]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (tmp_path / "run.jsonl").write_text("\r\n".join(lines), encoding="utf-8", newline="")
    plot(tmp_path / "run.jsonl", tmp_path / "run.png")
    assert drawn == {"dot": ([0, 1], [1, 2])}


@pytest.mark.parametrize("cut", [b'{"ali', '{"text": "é'.encode()[:-1], b'{"align/dot": 3.0'])
def test_a_last_line_that_is_not_yet_complete_is_left_out(cut, drawn, tmp_path):
    path = tmp_path / "run.jsonl"
    path.write_bytes(b'{"align/dot": 1.0}\n{"align/dot": 2.0}\n' + cut)
    plot(path, tmp_path / "run.png")
    assert drawn == {"dot": ([0, 1], [1, 2])}
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(ValueError, match="plot: expected a JSON object on every line; got .* in line 3"):
        plot(path, tmp_path / "run.png")


@pytest.mark.parametrize(
    "scalar",
    [numpy.float32, numpy.int64, numpy.float64, numpy.array, torch.tensor, Fraction],
    ids=lambda make: make.__name__,  # str has an address in it, another in each process
)
def test_scalars_of_numpy_and_torch_are_numbers(scalar, drawn, tmp_path):
    plot([{"step": scalar(5), "align/dot": scalar(3)}, {"step": 6, "align/dot": None}], tmp_path / "run.png")
    assert drawn == {"dot": ([5], [3])}
    assert {type(number) for curve in drawn["dot"] for number in curve} == {float}


@pytest.mark.parametrize(
    "value",
    ["3", [3.0], torch.ones(1), torch.tensor(1 + 1j), numpy.str_("x"), numpy.float32("inf"), 10**400],
    ids=["text", "list", "vector", "complex", "text of NumPy", "infinity", "above every float"],
)
def test_what_is_no_finite_number_is_not_drawn(value, drawn, tmp_path):
    plot([{"align/dot": 1.0}, {"align/dot": value}], tmp_path / "run.png")
    assert drawn == {"dot": ([0], [1])}
