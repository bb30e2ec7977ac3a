import json
import os

import pytest
from support.fresh_process import fresh_python

from gradalign import cli
from gradalign.cli import build_info
from gradalign.extension import compiler, library


@pytest.fixture
def found():
    result = build_info.examine()
    if result["why_not"] is not None:
        pytest.skip(result["why_not"])
    return result


def test_the_build_is_shown(found, capsys):
    assert found["digest"] == library.module().digest()
    assert found["built_for"] == library.module().built_for
    assert found["compiler"] == compiler.find_compiler().version
    assert cli.main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert f"compiler      {found['compiler']}\n" in text
    assert "planner" not in text


def doctor(tmp_path, **environment):
    environment = {**os.environ, "GRADALIGN_CACHE_DIR": str(tmp_path / "cache"), **environment}
    return json.loads(fresh_python("-m", "gradalign", "doctor", "--json", env=environment, check=True).stdout)[
        "extension"
    ]


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"PATH": "", "CXX": ""}, "gradalign._C: no C++ compiler found; install g++ or clang++, or set CXX"),
        ({"GRADALIGN_NATIVE": "0"}, "gradalign._C: switched off by GRADALIGN_NATIVE=0; unset it"),
    ],
    ids=["no compiler", "switched off"],
)
def test_where_it_cannot_be_built_the_reason_is_shown(tmp_path, environment, reason):
    assert doctor(tmp_path, **environment) == {"why_not": reason}
    assert build_info.as_text({"why_not": reason}) == [f"  not built     {reason}"]


def test_an_extension_that_does_not_load_is_a_finding(monkeypatch):
    def broken(name):
        raise OSError("invalid ELF header")

    monkeypatch.setattr(build_info.importlib, "import_module", broken)
    assert build_info.examine() == {"why_not": "OSError: invalid ELF header"}
