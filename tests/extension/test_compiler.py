"""Finding a compiler and ninja, where what is there does not run or says strange things."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from dataclasses import replace
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


@needs_compiler
@pytest.mark.parametrize(
    ("cxx", "path"),
    [("./g++", None), (None, "."), (None, ""), ("bin/g++", None)],
    ids=["CXX", "PATH", "empty", "folder"],
)
def test_a_compiler_named_from_this_folder_is_found_from_the_build_folder(home, tiny, monkeypatch, tmp_path, cxx, path):
    real = shutil.which("g++") or compiler.find_compiler().command[0]
    place = tmp_path / ("bin" if cxx == "bin/g++" else ".")
    place.mkdir(exist_ok=True)
    target = script(tmp_path / "wrapper", f'case "$*" in *--version) echo own;; *) exec {real} "$@";; esac')
    for name in ("g++", "c++"):
        (place / name).symlink_to(target)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CXX", raising=False)
    if cxx is not None:
        monkeypatch.setenv("CXX", f"{cxx} -Wall")
    if path is not None:
        monkeypatch.setenv("PATH", f"{path}:{os.environ['PATH']}")
    monkeypatch.setattr(compiler, "_ninja", lambda: None)
    expected = [str(place / "g++"), "-Wall"] if cxx is not None else [str(tmp_path / "c++")]
    assert compiler.find_compiler() == compiler.Compiler(tuple(expected), "own")  # a link stays a link
    assert answer(ensure(tiny)) == 42


def test_an_nvcc_named_from_this_folder_is_found_from_the_build_folder(monkeypatch, tmp_path):
    found = script(tmp_path / "bin" / "nvcc", "echo release 13.0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_HOME", ".")
    assert cuda.find_nvcc() == str(found)


@pytest.fixture
def odd(tmp_path, monkeypatch):
    """A folder whose name is not UTF-8, and a script there that is called before the compiler."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9 $x"))
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("a file system on which names are UTF-8")
    monkeypatch.setenv("CXX", shlex.join([str(folder / "g++")]))
    return folder


@needs_compiler
def test_ninja_builds_where_paths_are_not_utf8(home, tiny, monkeypatch, odd):
    real = shutil.which("g++") or "c++"
    script(odd / "g++", f'exec {real} "$@"')
    tiny = replace(tiny, units=(replace(tiny.units[0], flags=("-isystem", str(odd))),))
    by_ninja = []
    original = compiler._built_by_ninja
    monkeypatch.setattr(compiler, "_built_by_ninja", lambda *args: by_ninja.append(original(*args)) or by_ninja[-1])
    assert answer(ensure(tiny)) == 42
    assert by_ninja == [compiler._ninja() is not None]


def test_a_build_that_fails_where_paths_are_not_utf8_is_remembered(home, tiny, odd, num_builds):
    script(odd / "g++", "if [ \"$1\" = --version ]; then echo g++ 1; else echo 'error: none'; exit 1; fi")
    for _ in range(2):
        with pytest.raises(UnavailableError, match="could not build a tiny library: error: none; all of it is in"):
            ensure(tiny)
    assert len(num_builds) == 1


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
