import argparse
import contextlib
import os
import re
import sys
import types
from pathlib import Path

import pytest
from support.fresh_process import fresh_python

import gradalign
from gradalign import cli
from gradalign.cli.workload.assets import ASSETS

ROOT = Path(__file__).parents[2]
COMMAND_LINE = ROOT / "docs" / "command-line.md"


def test_the_module_runs_as_a_command():
    done = fresh_python("-m", "gradalign", "--version")
    assert (done.returncode, done.stdout) == (0, f"gradalign {gradalign.__version__}\n")


def test_a_subcommand_is_required(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([])
    assert stop.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_subcommand_has_help_and_its_own_run(name, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([name, "--help"])
    assert stop.value.code == 0
    assert f"usage: gradalign {name}" in capsys.readouterr().out
    assert cli.parser().parse_args([name]).run.__module__.startswith(f"gradalign.cli.{name}")


@pytest.fixture(scope="module")
def loaded():
    """The modules that making the parser loads."""
    code = "import sys; from gradalign import cli; cli.parser(); print(*sys.modules)"
    return fresh_python("-c", code, check=True).stdout.split()


@pytest.mark.parametrize("module", ["transformers", "matplotlib", "rich", "triton", "pybind11"])
def test_the_parser_imports_no_optional_package(module, loaded):
    assert "gradalign.cli.demo" in loaded
    assert module not in loaded


def command(run):
    """A module that defines the subcommand `probe`."""
    return types.SimpleNamespace(add_parser=lambda subparsers: subparsers.add_parser("probe"), run=run)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (cli.CommandError("expected a; got b"), 2, "gradalign probe: expected a; got b\n"),
        (KeyboardInterrupt(), 130, "gradalign probe: interrupted\n"),
    ],
)
def test_an_error_is_a_message_and_an_exit_code(monkeypatch, capsys, error, code, message):
    def run(args):
        raise error

    monkeypatch.setattr(cli, "COMMANDS", ("probe",))
    monkeypatch.setitem(sys.modules, "gradalign.cli.probe", command(run))
    assert cli.main(["probe"]) == code
    assert capsys.readouterr().err == message


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (cli.CommandError("expected a; got b"), 2, "gradalign: expected a; got b\n"),
        (KeyboardInterrupt(), 130, "gradalign: interrupted\n"),
    ],
)
def test_so_is_an_error_while_the_subcommands_are_imported(monkeypatch, capsys, error, code, message):
    def load(name):
        raise error

    monkeypatch.setattr(cli.importlib, "import_module", load)
    assert cli.main(["demo"]) == code
    assert capsys.readouterr().err == message


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_describes_every_subcommand_and_names_every_default(name):
    subparsers = next(a for a in cli.parser()._actions if isinstance(a, argparse._SubParsersAction))
    command = subparsers.choices[name]
    assert command.description
    for action in command._actions:
        if action.default not in (None, False, argparse.SUPPRESS):
            assert "(default: " in action.help, action.option_strings


def help_of(*argv):
    """What `--help` prints, in one line."""
    done = fresh_python("-m", "gradalign", *argv, "--help", check=True)
    return " ".join(done.stdout.split())


def test_help_says_where_to_begin():
    assert "Start with: gradalign doctor; gradalign demo." in help_of()
    assert (ROOT / "docs").is_dir()
    assert "docs/ of the source tree" in help_of()


@pytest.mark.parametrize("name", ["demo", "tune"])
def test_help_names_the_packages_that_a_command_needs(name):
    page, told = COMMAND_LINE.read_text(), help_of(name)
    for _, _, distribution in ASSETS.values():
        package = distribution.partition("==")[0]
        assert package in told.replace("- ", "-")
        assert f"`{package}`" in page
    assert 'pip install ".[demo]"' in told


def test_help_and_page_have_the_same_defaults():
    told = help_of("demo")
    rows = re.findall(r"^\| `(--[\w-]+)` \(`--task \w+`\) \| (.+) \|$", COMMAND_LINE.read_text(), re.MULTILINE)
    assert [name for name, _ in rows] == ["--held-out", "--lr", "--weight", "--radius"]
    for name, text in rows:
        words = text.replace("`", "")
        assert f"(default: {words})" in told or name == "--held-out", name
    (held_out,) = (text for name, text in rows if name == "--held-out")
    _, _, rest = held_out.partition(". These ")
    assert f"these {rest} (default: {held_out.split()[0]})" in told


def test_the_exit_code_is_what_the_subcommand_returns(monkeypatch):
    monkeypatch.setattr(cli, "COMMANDS", ("probe",))
    monkeypatch.setitem(sys.modules, "gradalign.cli.probe", command(lambda args: 7))
    assert cli.main(["probe"]) == 7


@pytest.mark.parametrize("argument", ["probe", "--version"])
def test_a_closed_standard_output_is_no_error(argument, monkeypatch):
    monkeypatch.setattr(cli, "COMMANDS", ("probe",))
    monkeypatch.setitem(sys.modules, "gradalign.cli.probe", command(lambda args: print("x") or 0))
    monkeypatch.setattr(sys, "stdout", None)
    if argument == "--version":
        with pytest.raises(SystemExit) as ended:
            cli.main([argument])
        assert not ended.value.code
    else:
        assert cli.main([argument]) == 0


@contextlib.contextmanager
def unread_output():
    """Standard output whose reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w")
    with contextlib.redirect_stdout(stream):
        yield stream
    with contextlib.suppress(BrokenPipeError):  # closing writes what is left
        stream.close()


@pytest.mark.parametrize("size", [1, 100_000])  # kept until the end, or more than the buffer
def test_a_command_whose_reader_has_gone_ends_quietly(size, monkeypatch, capfd):
    monkeypatch.setattr(cli, "COMMANDS", ("probe",))
    monkeypatch.setitem(sys.modules, "gradalign.cli.probe", command(lambda args: print("x" * size) or 0))
    with unread_output() as stream:
        assert cli.main(["probe"]) == 1
        print("what Python itself writes at its end goes nowhere", file=stream, flush=True)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("argv", [["--help"], ["--version"], ["doctor", "--json"]])
def test_so_does_everything_that_prints(argv):
    with unread_output():
        assert cli.main(argv) == 1


@pytest.mark.parametrize(
    ("error", "output"),
    [(BrokenPipeError("of a worker"), contextlib.nullcontext), (RuntimeError("of ours"), unread_output)],
)
def test_no_other_error_is_hidden(error, output, monkeypatch):
    def run(args):
        print("begun")
        raise error

    monkeypatch.setattr(cli, "COMMANDS", ("probe",))
    monkeypatch.setitem(sys.modules, "gradalign.cli.probe", command(run))
    with output(), pytest.raises(type(error), match=str(error)):
        cli.main(["probe"])
