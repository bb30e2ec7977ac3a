"""A build that fails is said once in one line, remembered, and tried again when something that matters has changed."""

from __future__ import annotations

import multiprocessing
import os
import shlex
import sys
from pathlib import Path

import pytest
from support.tiny_library import TINY, answer

from gradalign.extension import UnavailableError, cache, compiler, ensure, failures, library

pytestmark = pytest.mark.skipif(compiler.find_compiler() is None, reason="no C++ compiler")


@pytest.fixture
def broken(tiny):
    (library.sources() / "tiny.cpp").write_text("#error the header is missing\n")
    return tiny


def refused(binary) -> str:
    with pytest.raises(UnavailableError) as caught:
        ensure(binary)
    return str(caught.value)


def test_the_reason_and_the_remedy_are_one_line_on_stderr(home, broken, capfd):
    reason = refused(broken)
    said = [line for line in capfd.readouterr().err.splitlines() if "could not build" in line]
    (log,) = home.glob("*.log")
    assert "could not build a tiny library: " in reason
    assert "#error the header is missing" in reason
    assert reason.endswith(f"; all of it is in {log}; correct it, then delete that file to try again")
    assert said == [f"gradalign: {reason}"]
    assert "#error the header is missing" in log.read_text()
    assert not list(home.glob("*/libtiny.so"))


def test_it_is_not_tried_again_and_said_again(home, broken, num_builds, capfd):
    first = refused(broken)
    capfd.readouterr()
    assert refused(broken) == first
    assert len(num_builds) == 1
    assert capfd.readouterr().err == f"gradalign: {first}\n"


def test_without_ninja_the_reason_is_the_same(home, broken, monkeypatch):
    first = refused(broken)
    (log,) = home.glob("*.log")
    log.unlink()
    monkeypatch.setattr(compiler, "_ninja", lambda: None)
    assert refused(broken) == first


def test_deleting_the_log_tries_again(home, broken, num_builds):
    refused(broken)
    (log,) = home.glob("*.log")
    log.unlink()
    refused(broken)
    assert len(num_builds) == 2


def test_other_sources_are_tried(home, broken):
    refused(broken)
    (library.sources() / "tiny.cpp").write_text(TINY)
    assert answer(ensure(broken)) == 42


def test_another_torch_is_tried(home, broken, num_builds):
    refused(broken)
    refused(library.Library(**{**vars(broken), "built_for": "torch 2.11.0"}))
    assert len(num_builds) == 2


def test_another_command_of_the_same_compiler_is_tried(home, tiny, monkeypatch):
    command = shlex.join(compiler.find_compiler().command)
    monkeypatch.setenv("CXX", f"{command} -fno-such-option")
    assert "could not build a tiny library" in refused(tiny)
    monkeypatch.setenv("CXX", command)
    assert answer(ensure(tiny)) == 42
    assert not list(home.glob("*.log"))


def test_a_log_that_others_can_write_is_not_believed(home, broken):
    refused(broken)
    (log,) = home.glob("*.log")
    log.chmod(0o666)
    assert "others can write to" in refused(broken)


def try_to_build(home: str, sources: str, results) -> None:
    os.environ["GRADALIGN_CACHE_DIR"] = home
    library.sources = compiler.sources = lambda: Path(sources)
    attempts = []
    original = compiler.build
    compiler.build = lambda *args: attempts.append(1) or original(*args)
    unit = library.Unit("tiny.cpp", "tiny.o", ())
    try:
        ensure(library.Library("libtiny.so", "a tiny library", (unit,), (), ("tiny.cpp",), "torch 2.10.0"))
    except UnavailableError:
        results.put(len(attempts))


def test_processes_that_start_together_try_once(home, broken):
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    processes = [
        context.Process(target=try_to_build, args=(str(home), str(library.sources()), results)) for _ in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert sum(results.get() for _ in processes) == 1


def compiler_that(monkeypatch, tmp_path, text: str) -> None:
    shim = tmp_path / "g++"
    shim.write_text(f'#!/bin/sh\nif [ "$1" = --version ]; then echo g++ 1; exit; fi\n{text}\n')
    shim.chmod(0o755)
    monkeypatch.setenv("CXX", str(shim))


PASSING = [
    "g++: fatal error: Killed signal terminated program cc1plus",
    "collect2: fatal error: ld terminated with signal 9 [Killed]",
    "nvcc error : 'cicc' died due to signal 9 (Kill signal)",
    "fatal error: error writing to /tmp/a.s: No space left on device",
    "fatal error: error writing to /tmp/a.s: Disk quota exceeded",
    "ld: final link failed: File size limit exceeded",
    "fatal error: cannot execute cc1plus: vfork: Cannot allocate memory",
    "virtual memory exhausted: Cannot allocate memory",
    "cc1plus: out of memory allocating 65536 bytes",
]


@pytest.mark.parametrize("ninja", [True, False])
@pytest.mark.parametrize("words", PASSING)
def test_what_may_pass_is_tried_again_by_the_next_process(home, tiny, monkeypatch, tmp_path, num_builds, words, ninja):
    if not ninja:
        monkeypatch.setattr(compiler, "_ninja", lambda: None)
    compiler_that(monkeypatch, tmp_path, f'echo "a.h: error: none"; echo "{words}"; exit 1')
    reason = refused(tiny)
    assert f"could not build a tiny library: {words}; make sure that there is enough memory and disk" in reason
    assert not list(home.glob("*.log"))
    assert refused(tiny) == reason
    assert len(num_builds) == 2


@pytest.mark.parametrize("ninja", [["ninja"], None, "package"], ids=["ninja", "no ninja", "package"])
@pytest.mark.parametrize("signal", ["KILL", "TERM", "XFSZ"])
def test_a_compiler_that_is_killed_without_a_word_is_tried_again(home, tiny, monkeypatch, tmp_path, ninja, signal):
    if ninja == "package":
        pytest.importorskip("ninja")
        ninja = [sys.executable, "-m", "ninja"]
    monkeypatch.setattr(compiler, "_ninja", lambda: ninja)
    compiler_that(monkeypatch, tmp_path, f"kill -{signal} $$")
    assert "make sure that there is enough memory and disk space, then start again" in refused(tiny)
    assert not list(home.glob("*.log"))


@pytest.mark.parametrize(
    "words",
    [
        "nvcc error : 'cicc' died due to signal 11 (Invalid memory reference)",
        "g++: internal compiler error: Segmentation fault signal terminated program cc1plus",
        "clang++: error: clang frontend command failed due to signal (use -v to see invocation)",
        "undefined reference to `vtable for std::bad_alloc'",
    ],
)
def test_a_compiler_that_fails_by_itself_is_remembered(tiny, monkeypatch, tmp_path, num_builds, words):
    compiler_that(monkeypatch, tmp_path, f'echo "{words}"; exit 1')
    assert "delete that file to try again" in refused(tiny)
    refused(tiny)
    assert len(num_builds) == 1


@pytest.mark.parametrize("ninja", [True, False])
def test_the_names_of_folders_say_nothing_of_a_failure(tiny, monkeypatch, tmp_path, num_builds, ninja):
    if not ninja:
        monkeypatch.setattr(compiler, "_ninja", lambda: None)
    folder = tmp_path / "interrupted"
    folder.mkdir()
    compiler_that(monkeypatch, folder, "echo 'a.h: error: none'; exit 1")
    assert "error: none; all of it is in" in refused(tiny)
    refused(tiny)
    assert len(num_builds) == 1


def test_what_may_pass_and_was_remembered_by_an_earlier_version_is_tried(home, tiny):
    found = compiler.find_compiler()
    cache.open_directory()
    failures.remember(tiny.key(found.version), shlex.join(found.command), f"g++\n{PASSING[0]}")
    assert answer(ensure(tiny)) == 42


def test_the_end_of_a_long_line_stays(home, tiny, monkeypatch, tmp_path):
    compiler_that(monkeypatch, tmp_path, f"echo 'error: {'x' * 500}: the header is missing'; exit 1")
    reason = refused(tiny)
    assert "could not build a tiny library: error: xx" in reason
    assert "x ... x" in reason
    assert "xx: the header is missing; all of it is in" in reason
    assert len(reason) < 500


def test_sources_that_changed_meanwhile_are_no_failure_to_remember(home, tiny, monkeypatch):
    original = compiler.build

    def edited(*args):
        made = original(*args)
        (library.sources() / "tiny.cpp").write_text(TINY + "// newer\n")
        return made

    with monkeypatch.context() as patch:
        patch.setattr(compiler, "build", edited)
        assert "changed while they were compiled; start again" in refused(tiny)
    assert not list(home.glob("*.log"))
