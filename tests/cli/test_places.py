import json
import math
from pathlib import Path

import pytest
import torch

from gradalign import cli
from gradalign.cli import places, tune
from gradalign.cli.demo.sites import comparison
from gradalign.cli.errors import CommandError


def test_the_directory_is_made_and_left_empty(tmp_path):
    places.make_directory(tmp_path / "new" / "out")
    assert list((tmp_path / "new" / "out").iterdir()) == []


def test_a_directory_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    def refuse(**options):
        raise PermissionError(13, "Permission denied", "/out/tmp123")

    monkeypatch.setattr(places.tempfile, "NamedTemporaryFile", refuse)
    with pytest.raises(CommandError, match=f"--out: expected a directory that can be written; got {tmp_path}: Permis"):
        places.make_directory(tmp_path)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a directory that not even root can write to")
@pytest.mark.parametrize("argv", [["demo"], ["tune"]])
def test_every_command_checks_the_directory_before_any_work(argv, monkeypatch, capsys):
    for module, work in ((comparison, "compare"), (tune, "load")):
        monkeypatch.setattr(module, work, lambda *args: pytest.fail("work has begun"))
    assert cli.main([*argv, "--out", "/proc/self"]) == 2
    assert "--out: expected a directory that can be written; got /proc/self: No such file" in capsys.readouterr().err


def test_a_device_that_pytorch_can_use_is_returned():
    assert places.usable_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["abacus", "", "meta", "hpu"])
def test_a_device_that_stores_no_values_is_refused(name):
    with pytest.raises(
        CommandError, match=f"--device: expected one that PyTorch can use here, such as cpu; got '{name}'"
    ):
        places.usable_device(name)


def test_json_has_null_for_numbers_that_are_not_finite(tmp_path):
    places.write_json(tmp_path / "a.json", {"a": [math.nan, 1.0], "b": (math.inf,), "c": 2})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [None, 1.0], "b": [None], "c": 2}


def test_a_file_has_its_name_only_when_it_is_whole(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    places.write_json(path, {"a": 1})
    with pytest.raises(TypeError, match="not JSON serializable"):
        places.write_json(path, {"a": object()})
    with pytest.raises(KeyboardInterrupt), places.whole_file(path) as part:  # noqa: PT012 (what is interrupted is the writing)
        part.write_text("half")
        assert (part.parent, part.suffix) == (path.parent, path.suffix)
        raise KeyboardInterrupt
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_whole_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    synced = []
    monkeypatch.setattr(places.os, "fsync", lambda descriptor: synced.append(path.exists()))
    places.write_json(path, {"a": 1})
    assert synced == [False]
