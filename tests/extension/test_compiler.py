"""Finding a compiler and ninja, where what is there does not run or says strange things."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
from support.tiny_library import answer

from gradalign.extension import UnavailableError, compiler, cuda, ensure

needs_compiler = pytest.mark.skipif(compiler.find_compiler() is None, reason="no C++ compiler")


def script(path: Path, text: str, interpreter: str = "/bin/sh") -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!{interpreter}\n{text}\n")
    path.chmod(0o755)
    return path


@needs_compiler
@pytest.mark.parametrize(
    ("text", "interpreter"),
    [
        ("echo 'No module named ninja' >&2; exit 1", "/bin/sh"),
        ("exit 0", "/bin/sh"),
        ("", "/no/such/interpreter"),
        ("kill -SEGV $$", "/bin/sh"),
    ],
    ids=["refuses", "does nothing", "does not start", "crashes"],
)
def test_a_ninja_that_does_not_work_is_done_without(home, tiny, monkeypatch, tmp_path, text, interpreter):
    script(tmp_path / "bin" / "ninja", text, interpreter)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert answer(ensure(tiny)) == 42


@needs_compiler
def test_ninja_is_not_needed(home, tiny, monkeypatch):
    monkeypatch.setattr(compiler, "_ninja", lambda: None)
    assert answer(ensure(tiny)) == 42


@pytest.mark.parametrize("command", ["g++ '", "no-such-compiler", "''", f"{sys.executable} -c 1"])
def test_a_cxx_that_is_no_compiler_is_one_line(home, tiny, monkeypatch, command):
    monkeypatch.setenv("CXX", command)
    with pytest.raises(UnavailableError) as caught:
        ensure(tiny)
    assert str(caught.value) == (
        f"CXX: expected the command of a C++ compiler; got {command!r}, which does not run; correct it or unset it"
    )


@needs_compiler
def test_a_compiler_whose_version_is_not_utf8_is_used(home, tiny, monkeypatch, tmp_path):
    real = shutil.which(compiler.find_compiler().command[0])
    shim = script(
        tmp_path / "g++",
        f'if [ "$1" = --version ]; then printf \'g++ \\351t\\351 "x" \\\\ 1.0\\n\'; else exec {real} "$@"; fi',
    )
    monkeypatch.setenv("CXX", str(shim))
    assert compiler.find_compiler().version == "g++ ?t? ?x? ? 1.0"
    assert answer(ensure(tiny)) == 42


@needs_compiler
def test_what_a_compiler_says_need_not_be_utf8(home, tiny, monkeypatch, tmp_path):
    shim = script(
        tmp_path / "g++", "if [ \"$1\" = --version ]; then echo g++ 1; else printf 'error: \\351\\n'; exit 1; fi"
    )
    monkeypatch.setenv("CXX", str(shim))
    with pytest.raises(UnavailableError, match="could not build a tiny library: error: \ufffd"):
        ensure(tiny)


def test_a_compiler_that_does_not_start_is_passed_over(monkeypatch, tmp_path):
    script(tmp_path / "c++", "", "/no/such/interpreter")
    script(tmp_path / "g++", "echo g++ 1.0")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert compiler.find_compiler() == compiler.Compiler(("g++",), "g++ 1.0")


def test_a_compiler_that_makes_nothing_has_failed(home, tiny, monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", str(script(tmp_path / "g++", "echo g++ 1.0")))
    with pytest.raises(UnavailableError, match=r"could not build a tiny library: .*made no libtiny.so"):
        ensure(tiny)


@pytest.mark.parametrize("text", ["printf 'release \\351\\n'", "exit 1"])
def test_an_nvcc_of_strange_words_is_refused_in_words(monkeypatch, tmp_path, text):
    script(tmp_path / "bin" / "nvcc", text)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="does not say which release it is; set CUDA_HOME"):
        cuda.find_nvcc()


def test_an_nvcc_that_does_not_start_is_refused_in_words(monkeypatch, tmp_path):
    script(tmp_path / "bin" / "nvcc", "", "/no/such/interpreter")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="does not say which release it is; set CUDA_HOME"):
        cuda.find_nvcc()
