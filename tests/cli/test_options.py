import argparse

import pytest

from gradalign import cli
from gradalign.cli import options
from gradalign.cli.errors import CommandError


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (options.count(1), "7", 7),
        (options.finite, "-2.5", -2.5),
        (options.positive, "1e9", 1e9),
        (options.fraction, "0", 0.0),
    ],
)
def test_valid_values_are_parsed(parse, text, value):
    assert parse(text) == value


@pytest.mark.parametrize(
    ("parse", "text", "message"),
    [
        (options.count(2), "1", "expected an integer of at least 2; got '1'"),
        (options.count(0), "-1", "expected an integer of at least 0; got '-1'"),
        (options.count(0), "1.0", "expected an integer of at least 0; got '1.0'"),
        (options.count(0), "²", "expected an integer of at least 0; got '²'"),  # a digit to isdigit, not to int
        (options.count(0), "--5", "expected an integer of at least 0; got '--5'"),
        (options.finite, "nan", "expected a finite number; got 'nan'"),
        (options.positive, "0", "expected a number above 0; got '0'"),
        (options.positive, "inf", "expected a number above 0; got 'inf'"),
        (options.positive, "1e300", "expected a number of at most 1e\\+37 in magnitude; got '1e300'"),
        (options.finite, "-1e300", "expected a number of at most 1e\\+37 in magnitude; got '-1e300'"),
        (options.fraction, "1.1", "expected a number from 0 to 1; got '1.1'"),
        (options.fraction, "half", "expected a number; got 'half'"),
    ],
)
def test_invalid_values_are_refused_with_what_was_expected(parse, text, message):
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        parse(text)


@pytest.mark.parametrize(("given", "filled"), [({}, (0, None, False)), ({"seed": 3, "fresh": True}, (3, None, True))])
def test_options_that_were_not_given_get_their_defaults(given, filled):
    args = argparse.Namespace(**{"seed": None, "group_column": None, "fresh": False, **given})
    options.fill_defaults(args, "--suite", None, seed=0, group_column=None, fresh=False)
    assert (args.seed, args.group_column, args.fresh) == filled


def test_options_without_an_effect_are_refused_only_where_they_were_given():
    args = argparse.Namespace(seed=0, group_column="film", fresh=False, out=None)
    message = (
        "--group-column, --seed: expected only with --suite; got --compare, where it would have no effect; leave it out"
    )
    with pytest.raises(CommandError, match=message):
        options.fill_defaults(args, "--suite", "--compare", group_column=None, seed=0, fresh=False, out="here")
    options.fill_defaults(args, "--suite", "--compare", fresh=False, out="here")
    assert args.out == "here"


@pytest.mark.parametrize("text", ["9223372036854775808", "1" + 23 * "0"])
def test_a_number_that_torch_cannot_hold_is_refused_in_words(text):
    assert options.count(0)("9223372036854775807") == 2**63 - 1
    with pytest.raises(argparse.ArgumentTypeError, match=f"expected an integer of at most {2**63 - 1}; got '{text}'"):
        options.count(0)(text)


@pytest.mark.parametrize("command", [["demo", "--first-seed"], ["tune", "--seed"]])
def test_a_seed_that_is_too_large_is_refused_without_a_traceback(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([*command, str(10**23)])
    assert stop.value.code == 2
    assert f"{command[1]}: expected an integer of at most" in capsys.readouterr().err


def test_a_learning_rate_that_no_tensor_holds_is_refused_without_a_traceback(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["demo", "--task", "reviews", "--lr", "3e38"])
    assert stop.value.code == 2
    assert "--lr: expected a number of at most 1e+37 in magnitude; got '3e38'" in capsys.readouterr().err


def test_a_file_to_write_is_no_directory(tmp_path):
    assert options.file(str(tmp_path / "new" / "a.json")) == tmp_path / "new" / "a.json"
    for text in ("", ".", "..", "/", str(tmp_path), f"{tmp_path}/new/"):
        with pytest.raises(argparse.ArgumentTypeError, match=f"expected the name of a file; got '{text}', a directory"):
            options.file(text)
