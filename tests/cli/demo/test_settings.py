import argparse

import pytest

from gradalign.cli.demo.settings import TASKS, add_settings, resolve
from gradalign.cli.errors import CommandError


def parse(*argv):
    parser = argparse.ArgumentParser()
    add_settings(parser)
    return parser.parse_args(argv)


def test_the_default_is_the_task_that_the_method_is_for():
    s = resolve(parse())
    assert (s.task, s.seeds, s.steps, s.first_seed, s.texts) == ("sites", 5, 100, 0, 600)
    assert resolve(parse("--task", "reviews")).task == "reviews"


@pytest.mark.parametrize("task", ["sites", "reviews"])
def test_common_options_hold_for_every_task(task):
    s = resolve(parse("--task", task, "--steps", "7", "--seeds", "2", "--first-seed", "40"))
    assert (s.steps, s.seeds, s.first_seed) == (7, 2, 40)


def test_an_option_of_one_task_is_none_unless_it_is_given():
    for task in TASKS.values():
        assert {name: getattr(parse(), name) for name in task.DEFAULTS} == dict.fromkeys(task.DEFAULTS)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--weight", "0", "--model", "minilm"],
            "--model, --weight: expected only with --task reviews; got --task sites, where it would have no effect",
        ),
        (["--device", "cpu"], "--device: expected only with --task reviews; got --task sites"),
        (["--task", "reviews", "--texts", "50"], "--texts: expected only with --task sites; got --task reviews"),
    ],
)
def test_options_of_the_other_task_are_refused(argv, message):
    with pytest.raises(CommandError, match=message):
        resolve(parse(*argv))
