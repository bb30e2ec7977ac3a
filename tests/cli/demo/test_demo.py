"""The whole command, with fewer steps and texts."""

import json

import matplotlib.image
import pytest
from support import demo_records

from gradalign import cli
from gradalign.cli.demo.reviews import comparison, plot
from gradalign.cli.workload import assets

SHORT = ["--task", "reviews", "--steps", "3", "--train-size", "100", "--test-size", "64", "--k", "4", "--batch", "4"]


@pytest.mark.slow
def test_the_demo_prints_a_table_and_writes_plot_and_record(asset, tmp_path, capsys):
    asset("bert-tiny")
    asset("rotten-tomatoes")
    assert cli.main(["demo", *SHORT, "--seeds", "3", "--out", str(tmp_path / "new")]) == 0
    text = capsys.readouterr().out
    for words in (
        "test accuracy",
        "alignment dot",
        "alignment cosine",
        "cost factor",
        "peak memory",
        "over 3 paired seeds",
    ):
        assert words in text
    record = json.loads((tmp_path / "new" / "demo.json").read_text())
    assert record["settings"]["model"] == "bert-tiny"
    assert [s["seed"] for s in record["seeds"]] == [0, 1, 2]
    for s in record["seeds"]:
        assert len(s["gradalign"]["losses"]) == 3
        assert len(s["adamw"]["losses"]) == 3 + s["further_adamw_steps"]
        assert s["adamw"]["losses"][0] == pytest.approx(s["gradalign"]["losses"][0], rel=1e-6)
        assert s["data"]["train"] == 100
    assert record["peak_memory_bytes"]["adamw"] > 4 * 4 * 4_369_408  # weights, gradients and two moments in fp32
    assert set(record["summary"]["alignment_after"]["gradalign"]) == {"dot", "cosine", "grad_norm", "noise_scale"}
    assert matplotlib.image.imread(tmp_path / "new" / "demo.png").std() > 0.05


def test_your_own_csv_with_three_classes_and_one_seed(asset, tmp_path, capsys):
    asset("bert-tiny")
    rows = [f"sentence number {i} about subject {i % 3},class{i % 3}" for i in range(60)]
    (tmp_path / "texts.csv").write_text("\n".join(["sentence,subject", *rows]))
    columns = ["--csv", str(tmp_path / "texts.csv"), "--text-column", "sentence", "--label-column", "subject"]
    sizes = ["--steps", "2", "--seeds", "1", "--train-size", "40", "--test-size", "20", "--k", "2", "--batch", "4"]
    assert (
        cli.main(["demo", "--task", "reviews", *columns, *sizes, "--objective", "variance", "--out", str(tmp_path)])
        == 0
    )
    assert "on one seed, which cannot show a" in " ".join(capsys.readouterr().out.split())
    assert json.loads((tmp_path / "demo.json").read_text())["settings"]["csv"] == str(tmp_path / "texts.csv")


def test_a_plot_that_fails_costs_no_results(tmp_path, monkeypatch):
    def fail(result, path):
        raise OSError("no fonts")

    monkeypatch.setattr(assets, "require_extras", lambda: None)
    monkeypatch.setattr(comparison, "compare", lambda settings, console: demo_records.record(0.01))
    monkeypatch.setattr(plot, "save_plot", fail)
    with pytest.raises(OSError, match="no fonts"):
        cli.main(["demo", *SHORT, "--out", str(tmp_path)])
    assert json.loads((tmp_path / "demo.json").read_text())["summary"]["num_seeds"] == 1


def test_a_training_that_diverges_is_reported_and_written(asset, tmp_path, capsys):
    asset("bert-tiny")
    rows = [f"sentence number {i},class{i % 2}" for i in range(60)]
    (tmp_path / "texts.csv").write_text("\n".join(["text,label", *rows]))
    sizes = ["--steps", "2", "--seeds", "1", "--train-size", "40", "--test-size", "20", "--k", "2", "--batch", "4"]
    options = ["--csv", str(tmp_path / "texts.csv"), "--lr", "1e36", "--out", str(tmp_path)]
    assert cli.main(["demo", "--task", "reviews", *sizes, *options]) == 0
    assert "is not finite: a training diverged" in " ".join(capsys.readouterr().out.split())
    summary = json.loads((tmp_path / "demo.json").read_text())["summary"]
    assert summary["accuracy"]["gradalign"] == {"mean": None, "half_width": None}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--csv", "nowhere.csv"], "--csv: expected a CSV file; got 'nowhere.csv'"),
        (["--device", "abacus"], "--device: expected one that PyTorch can use here, such as cpu; got 'abacus'"),
        (["--normalize", "none"], "expected --weight with --objective dot --normalize none"),
    ],
)
def test_invalid_options_are_reported_without_a_traceback(tmp_path, capsys, argv, message):
    assert cli.main(["demo", *SHORT, *argv, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("gradalign demo: ")
    assert message in error


def test_options_that_gradalign_refuses_are_reported_without_a_traceback(asset, tmp_path, capsys):
    asset("bert-tiny")
    asset("rotten-tomatoes")
    assert cli.main(["demo", *SHORT, "--probe-fraction", "0", "--out", str(tmp_path)]) == 2
    assert "probe_fraction" in capsys.readouterr().err


def test_an_output_directory_that_cannot_be_made_is_refused_before_any_work(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli.main(["demo", *SHORT, "--out", str(tmp_path / "file" / "out")]) == 2
    assert "--out: expected a directory that can be written" in capsys.readouterr().err
