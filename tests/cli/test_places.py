"""Where a command works and writes is tried before it spends any time."""

from pathlib import Path

import pytest
import torch

from benchmarks.steps import commands
from gradalign import cli
from gradalign.cli import demo, places, tune
from gradalign.cli.errors import CommandError

RESULT = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "cpu.json"


def test_a_directory_that_can_be_written_is_made_and_left_empty(tmp_path):
    places.make_directory(tmp_path / "new" / "out")
    assert list((tmp_path / "new" / "out").iterdir()) == []


def test_what_cannot_be_written_is_refused(tmp_path, monkeypatch):
    def refuse(**options):
        raise PermissionError(13, "Permission denied", "/out/tmp123")

    monkeypatch.setattr(places.tempfile, "NamedTemporaryFile", refuse)
    with pytest.raises(CommandError, match=f"--out: expected a directory that can be written; got {tmp_path}: Permis"):
        places.make_directory(tmp_path)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a directory that nobody can write, root neither")
@pytest.mark.parametrize("argv", [["demo"], ["tune"], ["bench"], ["bench", "--report", str(RESULT)]])
def test_every_command_refuses_it_before_any_work(argv, monkeypatch, capsys):
    for module, work in ((demo, "compare"), (tune, "load"), (commands, "Runner"), (commands, "_write")):
        monkeypatch.setattr(module, work, lambda *args: pytest.fail("work has begun"))
    assert cli.main([*argv, "--out", "/proc/self"]) == 2
    assert "--out: expected a directory that can be written; got /proc/self: No such file" in capsys.readouterr().err


def test_a_device_that_pytorch_can_use_is_taken():
    assert places.usable_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["abacus", "", "meta", "hpu"])
def test_a_device_that_holds_no_numbers_is_refused(name):
    with pytest.raises(
        CommandError, match=f"--device: expected one that PyTorch can use here, such as cpu; got '{name}'"
    ):
        places.usable_device(name)
