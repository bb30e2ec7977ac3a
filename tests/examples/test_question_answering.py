"""Question answering runs with every method, architecture and format, and learns what it is shown."""

import json
import math

import pytest
from support import question_rows
from support.tiny_models import save

from gradalign.cli.errors import CommandError

LENGTHS = ["--max-length=40", "--stride=8", "--question-length=12", "--batch-size=4", "--micro-batches=2"]
METHODS = ["plain", "gradalign", "reptile", "fomaml", "sam"]
OFFICIAL = {"exact", "f1"}
WITH_THRESHOLD = (
    OFFICIAL
    | {f"{prefix}{name}" for prefix in ("HasAns_", "NoAns_", "best_") for name in ("exact", "f1")}
    | {"best_exact_thresh", "best_f1_thresh"}
)


@pytest.fixture
def main(example):
    return example("question_answering").main


@pytest.fixture
def arguments(tmp_path):
    """Options for a tiny model of an architecture on data of a layout."""

    def make(architecture, layout, *options):
        model = save(tmp_path / architecture, architecture, "AutoModelForQuestionAnswering")
        question_rows.WRITERS[layout](tmp_path / layout)
        return ["--model", model, "--data", str(tmp_path / layout), *LENGTHS, *options]

    return make


def test_every_method_trains_on_the_same_steps(main, arguments, tmp_path, capsys):
    out = tmp_path / "out" / "record.json"
    options = ["--steps=3", "--lr=0.01", "--out", str(out), "--method", *METHODS]
    record = main(arguments("bert", "squad", *options))
    losses = {method: [row["loss"] for row in runs[0]["history"]] for method, runs in record["runs"].items()}
    assert list(losses) == METHODS
    # Reptile and FOMAML see the second micro-batch after a step on the first.
    assert (
        losses["plain"][0] == losses["gradalign"][0] == losses["sam"][0] != losses["reptile"][0] == losses["fomaml"][0]
    )
    assert len({found[-1] for found in losses.values()}) == len(METHODS)
    assert all(math.isfinite(loss) for found in losses.values() for loss in found)
    assert set(record["means"]["sam"]) == WITH_THRESHOLD
    assert json.loads(out.read_text())["means"] == record["means"]
    printed = capsys.readouterr().out
    assert "2 questions in 4 windows; development: 2 in 4" in printed
    assert "best_f1_thresh" in printed


@pytest.mark.parametrize(
    ("architecture", "layout", "metrics"),
    [
        ("roberta", "newsqa", WITH_THRESHOLD),
        ("electra", "hub", WITH_THRESHOLD),
        ("electra", "quasar-t", OFFICIAL),
        ("bert", "mrqa", OFFICIAL),
    ],
)
def test_every_architecture_and_format_runs(main, arguments, architecture, layout, metrics):
    options = ["--batch-size=2", "--steps=1", "--method=gradalign", "--objective=cosine", "--normalize=none"]
    record = main(arguments(architecture, layout, *options))
    assert set(record["means"]["gradalign"]) == metrics
    (run,) = record["runs"]["gradalign"]
    assert math.isfinite(run["history"][-1]["loss"])


def test_questions_without_an_answer_can_be_left_out(main, arguments, capsys):
    record = main(arguments("bert", "newsqa", "--steps=1", "--answerable-only", "--batch-size=2", "--method=plain"))
    assert set(record["means"]["plain"]) == OFFICIAL
    assert "1 questions in 2 windows; development: 1 in 2" in capsys.readouterr().out


def test_limits_take_the_first_questions(main, arguments, capsys):
    main(
        arguments("bert", "squad", "--steps=1", "--train-limit=1", "--dev-limit=1", "--batch-size=2", "--method=plain")
    )
    assert "1 questions in 2 windows; development: 1 in 2" in capsys.readouterr().out


def test_it_learns_two_questions_by_heart(main, arguments):
    options = ["--method=gradalign", "--weight=0.001", "--steps=60", "--lr=0.03", "--weight-decay=0"]
    record = main(arguments("bert", "squad", *options))
    (run,) = record["runs"]["gradalign"]
    assert run["metrics"]["exact"] == run["metrics"]["HasAns_exact"] == run["metrics"]["NoAns_f1"] == 100
    assert run["history"][-1]["loss"] < 0.1 * run["history"][0]["loss"]


def test_windows_are_no_longer_than_the_model_reads(main, arguments, tmp_path):
    argv = arguments("bert", "squad", "--max-length=200")
    settings = tmp_path / "bert" / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "model_max_length": 96}))
    with pytest.raises(CommandError, match="--max-length: expected at most 96, which the model reads; got 200"):
        main(argv)


def test_windows_are_no_longer_than_the_positions_of_the_model(main, arguments):
    with pytest.raises(CommandError, match="--max-length: expected at most 96, which the model reads; got 97"):
        main(arguments("bert", "squad", "--max-length=97", "--batch-size=2", "--steps=1"))


def test_a_model_full_of_nan_answers_nothing(main, arguments, example, monkeypatch):
    logits = example("question_answering").all_logits
    monkeypatch.setattr(
        example("question_answering"),
        "all_logits",
        lambda *args: [([math.nan] * len(a), [math.nan] * len(b)) for a, b in logits(*args)],
    )
    (run,) = main(arguments("bert", "squad", "--steps=1", "--method=plain"))["runs"]["plain"]
    assert run["diverged"]
    assert all(math.isnan(value) for value in run["metrics"].values())


def test_questions_that_cannot_be_trained_are_counted(main, arguments, tmp_path, capsys):
    argv = arguments("bert", "squad", "--steps=1", "--method=plain", "--batch-size=2")
    path = tmp_path / "squad" / "train-v2.0.json"
    path.write_text(
        path.read_text().replace('"answer_start": 8', '"answer_start": 1').replace('start": 10', 'start": 3')
    )
    assert main(argv)["rows"] == {
        "questions, train": {"used": 1, "left_out": 1},
        "questions, development": {"used": 2, "left_out": 0},
    }
    assert "questions, train: 1 used, 1 left out" in capsys.readouterr().out


def test_windows_need_room_for_the_context(main, arguments, capsys):
    with pytest.raises(SystemExit):
        main(arguments("bert", "squad", "--max-length=27"))
    assert "--max-length: expected at least 28" in capsys.readouterr().err
