import argparse

import pytest

from gradalign.cli.demo.reviews.settings import PRESETS
from gradalign.cli.demo.settings import add_settings, resolve
from gradalign.cli.errors import CommandError
from gradalign.cli.workload.assets import MODELS


def settings(*argv):
    parser = argparse.ArgumentParser()
    add_settings(parser)
    return resolve(parser.parse_args(["--task", "reviews", *argv]))


def test_the_defaults_are_bert_tiny_on_three_seeds():
    s = settings()
    assert (s.model, s.data, s.seeds, s.steps, s.warmup) == ("bert-tiny", "Rotten Tomatoes snippets", 3, 60, 15)
    assert (s.k, s.objective, s.normalize, s.estimator, s.radius) == (8, "dot", "direction", "split", None)


@pytest.mark.parametrize(
    ("objective", "weight"), [("dot", 0.001), ("norm", 0.03), ("variance", 0.03), ("cosine", 0.03)]
)
def test_each_objective_has_its_default_weight(objective, weight):
    assert settings("--objective", objective).weight == weight


def test_options_override_defaults():
    s = settings(
        "--weight", "0", "--steps", "8", "--seeds", "5", "--lr", "0.1", "--normalize", "none", "--csv", "my.csv"
    )
    assert (s.weight, s.steps, s.warmup, s.seeds, s.lr, s.data) == (0.0, 8, 2, 5, 0.1, "my.csv")


def test_every_model_that_ships_has_a_preset():
    assert set(PRESETS) == set(MODELS)


def test_other_models_have_their_own_defaults():
    assert settings("--model", "minilm").seeds == 1
    assert settings("--model", "some/encoder").lr < settings("--model", "bert-tiny").lr


def test_a_weight_without_a_default_must_be_given():
    with pytest.raises(CommandError, match="expected --weight with --objective dot --normalize gradient; got none"):
        settings("--normalize", "gradient")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--steps", "0"], "argument --steps: expected an integer of at least 1; got '0'"),
        (["--k", "1"], "argument --k: expected an integer of at least 2; got '1'"),
        (["--seeds", "two"], "argument --seeds: expected an integer of at least 1; got 'two'"),
        (["--probe-fraction", "1.5"], "argument --probe-fraction: expected a number from 0 to 1; got '1.5'"),
        (["--radius", "-1"], "argument --radius: expected a number above 0; got '-1'"),
        (["--lr", "nan"], "argument --lr: expected a number above 0; got 'nan'"),
        (["--lr", "fast"], "argument --lr: expected a number; got 'fast'"),
        (["--weight", "inf"], "argument --weight: expected a finite number; got 'inf'"),
        (["--objective", "cos"], "argument --objective: invalid choice: 'cos'"),
    ],
)
def test_invalid_values_are_refused(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        settings(*argv)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_columns_and_estimators_have_their_own_defaults():
    s = settings("--csv", "my.csv", "--label-column", "stars")
    assert (s.text_column, s.label_column, s.group_column) == ("text", "stars", None)
    assert (settings().text_column, s.probe_fraction, s.difference) == ("text", 0.25, "forward")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--group-column", "film"],
            "--group-column: expected only with --csv; got no --csv, where it would have no effect",
        ),
        (["--text-column", "text", "--label-column", "y"], "--text-column, --label-column: expected only with --csv"),
        (
            ["--estimator", "prefix", "--probe-fraction", "0.5"],
            "--probe-fraction: expected only with --estimator split; got --estimator prefix",
        ),
        (
            ["--estimator", "exact", "--difference", "central", "--radius", "0.1"],
            "--difference, --radius: expected only with an estimator that takes finite differences; got --estimator exact",
        ),
    ],
)
def test_options_without_an_effect_are_refused(argv, message):
    with pytest.raises(CommandError, match=message):
        settings(*argv)
