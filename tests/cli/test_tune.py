"""`gradalign tune` on a toy, and once as a user runs it."""

import json

import matplotlib.image
import pytest
import torch
from support.toy_demo import toy_batches, toy_model

from gradalign import cli
from gradalign.cli import tune


@pytest.fixture
def toy(monkeypatch):
    """A toy in the place of the pretrained encoder and its texts; returns what `load` was asked for."""
    asked = []

    def load(args, device):
        asked.append((args, device))
        dtype = torch.bfloat16 if args.precision == "bfloat16" else torch.float32
        return toy_model().to(dtype).train(args.train), toy_batches(args.k, args.batch)

    monkeypatch.setattr(tune, "load", load)
    return asked


def test_the_table_the_plot_and_the_record(toy, tmp_path, capsys):
    assert cli.main(["tune", "--k", "4", "--radii", "0.01", "0.1", "--out", str(tmp_path / "new")]) == 0
    text = capsys.readouterr().out
    for words in ("against double backward", "radius=0.1 for central differences", "variance", "tune.json written"):
        assert words in text
    record = json.loads((tmp_path / "new" / "tune.json").read_text())
    assert [p["radius"] for p in record["result"]["curve"]] == [0.01, 0.1]
    assert 0 < record["result"]["curve"][0]["central"] < record["result"]["curve"][0]["forward"] < 0.1
    assert (record["settings"]["k"], record["settings"]["precision"]) == (4, "float32")
    assert matplotlib.image.imread(tmp_path / "new" / "tune.png").std() > 0.05
    assert toy[0][1] == torch.device("cpu")


def test_precision_mode_and_reference_reach_the_measurement(toy, tmp_path, capsys):
    options = ["--precision", "autocast", "--train", "--reference", "richardson", "--radii", "0.1"]
    assert cli.main(["tune", "--k", "2", *options, "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "against a Richardson extrapolation: 178 parameters, float32, autocast" in text
    assert "GradAlign's default here is 0.03" in text
    assert cli.main(["tune", "--k", "2", "--precision", "bfloat16", "--radii", "0.1", "--out", str(tmp_path)]) == 0
    assert "178 parameters, bfloat16" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--csv", "nowhere.csv"], "--csv: expected a CSV file; got 'nowhere.csv'"),
        (["--device", "abacus"], "--device: expected one that PyTorch can use here, such as cpu; got 'abacus'"),
        (["--label-column", "stars"], "--label-column: expected only with --csv; got no --csv"),
        (["--k", "999999"], "expected at least 7999992 texts, --k times --batch; got"),
    ],
)
def test_what_does_not_fit_is_said_without_a_traceback(tmp_path, capsys, argv, message):
    assert cli.main(["tune", *argv, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("gradalign tune: ")
    assert message in error


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--probe-fraction", "0"], "probe_fraction: expected a number above 0"),
        (["--radii", "1e-300"], "radii: expected lengths from 1e-18 to 1e+18"),
    ],
)
def test_what_tune_refuses_is_said_without_a_traceback(toy, tmp_path, capsys, argv, message):
    assert cli.main(["tune", *argv, "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--k", "1"], "argument --k: expected an integer of at least 2; got '1'"),
        (["--radii", "0"], "argument --radii: expected a number above 0; got '0'"),
        (["--precision", "int8"], "argument --precision: invalid choice: 'int8'"),
    ],
)
def test_wrong_values_are_refused(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["tune", *argv])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_bert_tiny_on_texts_of_ones_own(tmp_path, capsys):
    rows = [f"sentence number {i} about subject {i % 3},class{i % 3}" for i in range(40)]
    (tmp_path / "texts.csv").write_text("\n".join(["sentence,subject", *rows]))
    columns = ["--csv", str(tmp_path / "texts.csv"), "--text-column", "sentence", "--label-column", "subject"]
    assert cli.main(["tune", *columns, "--k", "4", "--radii", "0.001", "0.01", "--out", str(tmp_path)]) == 0
    assert "parameters, float32" in capsys.readouterr().out
    record = json.loads((tmp_path / "tune.json").read_text())
    assert record["result"]["reference"] == "double_backward"
    assert record["result"]["curve"][0]["forward"] < 0.05
