"""`gradalign tune` on a small model, and once on a pretrained one."""

import json

import matplotlib.image
import pytest
import torch
from support.toy_demo import toy_batches, toy_model

import gradalign
from gradalign import cli
from gradalign.cli import tune


@pytest.fixture
def toy(monkeypatch):
    """Replaces the pretrained encoder and the texts by small ones; returns the arguments of each `load`."""
    calls = []

    def load(args, device):
        calls.append((args, device))
        dtype = torch.bfloat16 if args.precision == "bfloat16" else torch.float32
        return toy_model().to(dtype).train(args.train), toy_batches(args.k, args.batch)

    monkeypatch.setattr(tune, "load", load)
    return calls


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


def test_a_plot_that_fails_costs_no_results(toy, tmp_path, monkeypatch):
    def fail(result, path):
        raise OSError("no fonts")

    monkeypatch.setattr(gradalign.TuningResult, "plot", fail)
    with pytest.raises(OSError, match="no fonts"):
        cli.main(["tune", "--k", "2", "--radii", "0.1", "--out", str(tmp_path)])
    assert json.loads((tmp_path / "tune.json").read_text())["result"]["curve"]


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
    ],
)
def test_invalid_options_are_reported_without_a_traceback(tmp_path, capsys, argv, message):
    assert cli.main(["tune", *argv, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("gradalign tune: ")
    assert message in error


def test_too_few_texts_are_reported_without_a_traceback(tmp_path, capsys):
    (tmp_path / "texts.csv").write_text("text,label\ngood,1\nbad,0\n")
    options = ["--csv", str(tmp_path / "texts.csv"), "--k", "2", "--batch", "4", "--out", str(tmp_path)]
    assert cli.main(["tune", *options]) == 2
    assert "expected at least 8 texts, --k times --batch; got 2 in texts.csv; lower one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--probe-fraction", "0"], "probe_fraction: expected a number above 0"),
        (["--radii", "1e-300"], "radii: expected lengths from 1e-18 to 1e+18"),
    ],
)
def test_options_that_tune_refuses_are_reported_without_a_traceback(toy, tmp_path, capsys, argv, message):
    assert cli.main(["tune", *argv, "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["tune.json", "tune.png"])
def test_an_output_that_is_a_directory_is_reported_before_the_measurement(toy, tmp_path, capsys, name):
    (tmp_path / name).mkdir()
    assert cli.main(["tune", "--out", str(tmp_path)]) == 2
    assert f"--out: expected a directory where {name} can be written; got {tmp_path}, where" in capsys.readouterr().err
    assert toy == []


def test_probes_that_are_not_finite_are_reported_without_a_traceback(toy, tmp_path, capsys, monkeypatch):
    load = tune.load

    def with_nan(args, device):
        model, batches = load(args, device)
        batches[-1]["attention_mask"].zero_()
        return model, batches

    monkeypatch.setattr(tune, "load", with_nan)
    assert cli.main(["tune", "--k", "4", "--out", str(tmp_path)]) == 2
    assert "expected finite gradients of the probes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--k", "1"], "argument --k: expected an integer of at least 2; got '1'"),
        (["--radii", "0"], "argument --radii: expected a number above 0; got '0'"),
        (["--precision", "int8"], "argument --precision: invalid choice: 'int8'"),
    ],
)
def test_invalid_values_are_refused(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["tune", *argv])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_bert_tiny_on_your_own_texts(asset, tmp_path, capsys):
    asset("bert-tiny")
    rows = [f"sentence number {i} about subject {i % 3},class{i % 3}" for i in range(40)]
    (tmp_path / "texts.csv").write_text("\n".join(["sentence,subject", *rows]))
    columns = ["--csv", str(tmp_path / "texts.csv"), "--text-column", "sentence", "--label-column", "subject"]
    assert cli.main(["tune", *columns, "--k", "4", "--radii", "0.001", "0.01", "--out", str(tmp_path)]) == 0
    assert "parameters, float32" in capsys.readouterr().out
    record = json.loads((tmp_path / "tune.json").read_text())
    assert record["result"]["reference"] == "double_backward"
    assert record["result"]["curve"][0]["forward"] < 0.05


def test_what_is_written_is_renamed_when_it_is_whole(toy, tmp_path, monkeypatch):
    assert cli.main(["tune", "--out", str(tmp_path)]) == 0
    before = (tmp_path / "tune.png").read_bytes()

    def cut_short(self, path):
        path.write_bytes(b"half a picture")
        raise KeyboardInterrupt

    monkeypatch.setattr(gradalign.TuningResult, "plot", cut_short)
    assert cli.main(["tune", "--out", str(tmp_path)]) == 130
    assert (tmp_path / "tune.png").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tune.json", "tune.png"]


@pytest.mark.parametrize("command", [["tune"], ["demo", "--task", "reviews"]])
@pytest.mark.parametrize("name", ["[/b]", "[bold", ":smile:"])
def test_a_model_name_with_markup_is_text(asset, tmp_path, capsys, monkeypatch, command, name):
    asset("rotten-tomatoes")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert cli.main([*command, "--model", name, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert (
        f"--model: expected bert-tiny, minilm, a directory or a Hugging Face name of a text encoder; got {name!r}"
        in error
    )
