"""How the native binaries come to be: built once, kept safely, refused where that is not safe."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import re
import shlex
import stat
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from support.fresh_process import fresh_python
from support.tiny_library import TINY, answer

from gradalign.extension import UnavailableError, cache, compiler, ensure, library, loading

ROOT = Path(__file__).parents[2]
needs_compiler = pytest.mark.skipif(compiler.find_compiler() is None, reason="no C++ compiler")


@needs_compiler
def test_built_once_and_found_again(home, tiny, capfd):
    first = ensure(tiny)
    message = capfd.readouterr().err
    assert "building a tiny library with" in message
    assert "built a tiny library in" in message
    assert answer(first) == 42
    assert ensure(tiny) == first
    assert capfd.readouterr().err == ""
    assert [p.name for p in home.iterdir() if ".work-" in p.name] == []


@needs_compiler
def test_only_the_owner_can_enter_the_cache(home, tiny):
    path = ensure(tiny)
    for folder in (home, path.parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0


@needs_compiler
def test_another_source_flag_torch_or_compiler_is_another_place(home, tiny):
    key = tiny.key("g++ 12")
    assert key != tiny.key("g++ 13")
    assert key != library.Library(**{**vars(tiny), "built_for": "torch 2.11.0"}).key("g++ 12")
    assert key != library.Library(**{**vars(tiny), "link": ("-lm",)}).key("g++ 12")
    (library.sources() / "tiny.cpp").write_text(TINY + "// changed\n")
    assert key != tiny.key("g++ 12")


@pytest.mark.parametrize("mode", [0o777, 0o775])
def test_a_cache_that_others_can_write_is_refused(home, tiny, mode):
    home.mkdir()
    home.chmod(mode)
    with pytest.raises(UnavailableError, match=r"the cache is refused: others can write to .*; run chmod go-w on it"):
        ensure(tiny)


def test_a_cache_in_a_folder_that_others_can_write_is_refused(home, tiny):
    home.parent.chmod(0o777)
    with pytest.raises(UnavailableError, match="above the cache; run chmod go-w on it, or set GRADALIGN_CACHE_DIR"):
        ensure(tiny)


@needs_compiler
def test_a_binary_that_others_can_write_is_refused(home, tiny):
    ensure(tiny).chmod(0o777)
    with pytest.raises(UnavailableError, match="others can write to"):
        ensure(tiny)


@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="only root can give files away")
def test_a_cache_of_somebody_else_is_refused(home, tiny):
    home.mkdir(mode=0o700)
    os.chown(home, 12345, 12345)
    with pytest.raises(UnavailableError, match=r"belongs to somebody else \(user 12345\)"):
        ensure(tiny)


def test_the_place_of_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("GRADALIGN_CACHE_DIR", str(tmp_path / "a"))
    assert cache.directory() == tmp_path / "a"
    monkeypatch.delenv("GRADALIGN_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert cache.directory() == tmp_path / "b" / "gradalign"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "c"))
    assert cache.directory() == tmp_path / "c" / ".cache" / "gradalign"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, says its specification
    assert cache.directory() == tmp_path / "c" / ".cache" / "gradalign"
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / ".cache").symlink_to(tmp_path / "d")
    assert cache.directory() == tmp_path / "d" / "gradalign"


@pytest.mark.parametrize("name", ["GRADALIGN_CACHE_DIR", "XDG_CACHE_HOME"])
def test_a_cache_in_a_loop_of_links_is_refused_by_its_name(monkeypatch, tmp_path, tiny, name):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    monkeypatch.delenv("GRADALIGN_CACHE_DIR", raising=False)
    monkeypatch.setenv(name, f"{tmp_path}/loop/x")
    with pytest.raises(UnavailableError, match=f"{name}: expected a folder; got '.*/loop/x', which cannot be resolved"):
        ensure(tiny)


def test_a_cache_in_the_home_of_nobody_is_refused_by_its_name(monkeypatch, tiny):
    monkeypatch.setenv("GRADALIGN_CACHE_DIR", "~nosuch/x")
    with pytest.raises(UnavailableError, match="GRADALIGN_CACHE_DIR: expected a folder; got '~nosuch/x', which cannot"):
        ensure(tiny)


def test_a_user_without_a_home_has_no_cache(monkeypatch, tiny):
    def nowhere(_):
        raise RuntimeError("Could not determine home directory.")

    for name in ("GRADALIGN_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", classmethod(nowhere))
    with pytest.raises(UnavailableError, match="there is no home folder; set GRADALIGN_CACHE_DIR"):
        ensure(tiny)


@needs_compiler
def test_an_interrupted_build_leaves_nothing_that_is_used(home, tiny, monkeypatch):
    def interrupted(binary, found, folder, defines=()):
        (folder / binary.name).write_text("half a bina")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(compiler, "build", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ensure(tiny)
    assert not list(home.glob("*/libtiny.so"))
    assert answer(ensure(tiny)) == 42


@needs_compiler
def test_sources_that_change_during_the_build_are_not_kept(home, tiny, monkeypatch):
    original = compiler.build

    def edited(*args):
        made = original(*args)
        (library.sources() / "tiny.cpp").write_text(TINY + "// newer\n")
        return made

    with monkeypatch.context() as patch:
        patch.setattr(compiler, "build", edited)
        with pytest.raises(UnavailableError, match="the sources of a tiny library changed while they were compiled"):
            ensure(tiny)
    assert not list(home.glob("*/libtiny.so"))


@needs_compiler
def test_leftovers_of_a_killed_build_are_removed(home, tiny):
    key = tiny.key(compiler.find_compiler().version)
    leftover = home / f"{key}.work-killed"
    leftover.mkdir(parents=True)
    home.chmod(0o700)
    assert answer(ensure(tiny)) == 42
    assert not leftover.exists()


def build_and_report(home: str, sources: str, results) -> None:
    os.environ["GRADALIGN_CACHE_DIR"] = home
    library.sources = compiler.sources = lambda: Path(sources)
    builds = []
    original = compiler.build
    compiler.build = lambda *args: builds.append(1) or original(*args)
    unit = library.Unit("tiny.cpp", "tiny.o", ())
    path = ensure(library.Library("libtiny.so", "a tiny library", (unit,), (), ("tiny.cpp",), "torch 2.10.0"))
    results.put((str(path), len(builds)))


@needs_compiler
def test_processes_that_start_together_build_once(home, tiny):
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    processes = [
        context.Process(target=build_and_report, args=(str(home), str(library.sources()), results)) for _ in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    paths, builds = zip(*(results.get() for _ in processes), strict=True)
    assert len(set(paths)) == 1
    assert sum(builds) == 1


def test_no_compiler_is_one_line(home, tiny, monkeypatch):
    monkeypatch.setattr(compiler, "find_compiler", lambda: None)
    with pytest.raises(UnavailableError, match=r"^no C\+\+ compiler found; install g\+\+ or clang\+\+, or set CXX$"):
        ensure(tiny)


def test_switched_off(home, tiny, monkeypatch):
    monkeypatch.setenv("GRADALIGN_NATIVE", "0")
    with pytest.raises(UnavailableError, match="switched off by GRADALIGN_NATIVE=0"):
        ensure(tiny)
    assert not home.exists()


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    return fresh_python("-c", code, env={**os.environ, **environment})


AUTO = (
    "import torch, gradalign.backends.dispatch as d; print(d.backend('auto', 'cpu', frozenset((torch.float32,))).NAME)"
)


def test_auto_falls_to_reference_without_a_compiler(tmp_path):
    run = python(AUTO, PATH="", CXX="", GRADALIGN_CACHE_DIR=str(tmp_path / "cache"))
    assert run.stdout.split() == ["reference"], run.stderr


def test_an_explicit_native_is_never_replaced(tmp_path):
    code = "import torch, gradalign.backends.dispatch as d; d.backend('native', 'cpu', frozenset((torch.float32,)))"
    run = python(code, GRADALIGN_NATIVE="0")
    assert 'backend "native": switched off by GRADALIGN_NATIVE=0; unset it; available here:' in run.stderr


def test_a_shipped_binary_must_fit():
    assert loading._runs_on_this("torch 2.10.0", "torch 2.13.0+cpu")
    assert not loading._runs_on_this("torch 2.13.0", "torch 2.10.1")
    assert loading._runs_on_this("python cpython-311", "python cpython-311")
    assert not loading._runs_on_this("python cpython-311", "python cpython-312")


@pytest.fixture
def record(monkeypatch, tmp_path, tiny):
    """Where the record of a shipped binary is, and what it says where it fits."""
    monkeypatch.setattr(loading, "_package", lambda: tmp_path)
    (tmp_path / tiny.name).write_text("a binary")
    return tmp_path / "libtiny.json", {"digest": tiny.digest(), "built_for": tiny.built_for, "architectures": "9.0"}


def test_a_shipped_binary_with_its_record_is_used(record, tiny):
    path, facts = record
    path.write_text(json.dumps(facts))
    assert loading.shipped(replace(tiny, present=((9, 0),))) == path.with_suffix(".so")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"3", b'"digest"', b"{}", b'{"digest": 1}', b"\xff"])
def test_a_shipped_binary_without_a_readable_record_is_not_used(record, tiny, content):
    record[0].write_bytes(content)
    assert loading.shipped(tiny) is None


@pytest.mark.parametrize(
    "odd", [{"built_for": "torch"}, {"built_for": "torch new"}, {"built_for": 3}, {"architectures": "new"}], ids=str
)
def test_a_shipped_binary_with_an_odd_record_is_not_used(record, tiny, odd):
    path, facts = record
    path.write_text(json.dumps({**facts, **odd}))
    assert loading.shipped(replace(tiny, present=((9, 0),))) is None


@needs_compiler
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_an_stderr_that_is_full_costs_no_kernels(home, tiny, monkeypatch):
    with open("/dev/full", "wb", buffering=0) as full:
        monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(full, write_through=True))
        assert answer(ensure(tiny)) == 42
        monkeypatch.undo()


@needs_compiler
def test_an_stderr_that_is_closed_costs_no_kernels(home, tiny, monkeypatch):
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)
    assert answer(ensure(tiny)) == 42


@needs_compiler
def test_without_stderr_nothing_is_said_on_stdout(home, tiny, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", None)
    assert answer(ensure(tiny)) == 42
    assert capsys.readouterr().out == ""


# What csrc uses of torch, each looked up in the headers of torch 2.10.0, the oldest that the kernels are compiled against.
IN_TORCH_2_10 = {
    "DeviceGuard",
    "STABLE_TORCH_LIBRARY",
    "STABLE_TORCH_LIBRARY_IMPL",
    "StableLibrary",
    "TORCH_BOX",
    "TORCH_ERROR_CODE_CHECK",
    "Tensor",
    "aoti_torch_device_type_cpu",
    "aoti_torch_device_type_cuda",
    "aoti_torch_dtype_bfloat16",
    "aoti_torch_dtype_bool",
    "aoti_torch_dtype_float16",
    "aoti_torch_dtype_float32",
    "aoti_torch_dtype_float64",
    "aoti_torch_dtype_int32",
    "aoti_torch_dtype_int64",
    "aoti_torch_empty_strided",
    "aoti_torch_get_current_cuda_stream",
    "aoti_torch_get_device_type",
    "aoti_torch_get_dtype",
    "aoti_torch_get_layout",
    "aoti_torch_layout_strided",
    "get_num_threads",
    "parallel_for",
}


def test_the_sources_use_what_the_oldest_torch_has():
    used = set()
    for path in library.sources().rglob("*"):
        text = re.sub(r"//.*", "", path.read_text()) if path.is_file() else ""
        used |= set(re.findall(r"\b(?:aoti_torch_\w+|(?:STABLE_)?TORCH_[A-Z_]+)\b", text))
        used |= {name.split("::")[-1] for name in re.findall(r"\btorch::stable::(?:\w+::)*\w+", text)}
    assert len(used) > 20
    assert used - IN_TORCH_2_10 == set(), "look them up in the headers of torch 2.10.0 and add them to IN_TORCH_2_10"


@needs_compiler
def test_module_tells_what_it_was_built_from():
    module = pytest.importorskip("gradalign._C", exc_type=ImportError)
    info = module.build_info()
    assert info["digest"] == library.module().digest()
    assert info["built_for"] == library.module().built_for
    assert info["compiler"] == compiler.find_compiler().version


@needs_compiler
def test_the_planner_balances_pages():
    module = pytest.importorskip("gradalign._C", exc_type=ImportError)
    numels = [5, 0, 100_000, 3, *[10] * 1000]
    pages = module.plan(numels, 1024)
    covered = [0] * len(numels)
    for page in pages:
        for tensor, begin, length in page:
            assert begin == covered[tensor]  # in order, without gaps or overlaps
            assert length > 0
            covered[tensor] += length
        assert sum(length for *_, length in page) <= 1024
    assert covered == numels
    assert max(len(page) for page in pages) <= 1024 // 64 + 1  # a page of tiny tensors is short
    assert module.plan([]) == []
    assert module.plan([0, 0]) == []
    with pytest.raises(ValueError, match="expected page_elements of at least 1; got 0"):
        module.plan([1], 0)
    with pytest.raises(ValueError, match="expected sizes of at least 0; got -1"):
        module.plan([-1])


PACKAGED = ("gradalign", "kernels", "csrc", "setup.py", "pyproject.toml")


def checkout(source: Path, *tops: str) -> None:
    """A copy of what git has of these files and folders, or of everything."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file() and (not tops or name.split("/")[0] in tops):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())


def wheel(tmp_path: Path, *options: str) -> set[str]:
    source = tmp_path / "source"
    checkout(source, *PACKAGED)
    (source / "README.md").write_text("gradalign\n")
    return wheel_of(source, tmp_path, *options)


def wheel_of(source: Path, tmp_path: Path, *options: str) -> set[str]:
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), *options, str(source)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    (made,) = tmp_path.glob("*.whl")
    return {made.name, *zipfile.ZipFile(made).namelist()}


@pytest.mark.slow
@needs_compiler
def test_a_wheel_built_beside_torch_holds_the_binaries(tmp_path, monkeypatch):
    pytest.importorskip("setuptools")
    unoptimised = tmp_path / "cxx"  # which takes a sixth of the time, and what is in the wheel is not run
    unoptimised.write_text(f'#!/bin/sh\nexec {shlex.join(compiler.find_compiler().command)} "$@" -O0\n')
    unoptimised.chmod(0o700)
    monkeypatch.setenv("CXX", str(unoptimised))
    names = wheel(tmp_path, "--no-build-isolation")
    assert "gradalign/libgradalign_cpu.so" in names
    assert "gradalign/libgradalign_cpu.json" in names
    assert library.module().name in {name.split("/")[-1] for name in names}
    assert not any(name.endswith("none-any.whl") for name in names)


def test_a_wheel_without_native_code_holds_the_sources(tmp_path, monkeypatch):
    pytest.importorskip("setuptools")
    monkeypatch.setenv("GRADALIGN_NATIVE", "0")
    names = wheel(tmp_path, "--no-build-isolation")
    assert any(name.endswith("py3-none-any.whl") for name in names)
    sources = {p.relative_to(ROOT).as_posix() for p in (ROOT / "csrc").rglob("*.*")}
    assert {f"gradalign/{name}" for name in sources} <= names
    assert not any(name.endswith(".so") for name in names)


def test_a_source_distribution_builds_the_same_wheel_and_holds_no_tests(tmp_path, monkeypatch):
    pytest.importorskip("setuptools")
    monkeypatch.setenv("GRADALIGN_NATIVE", "0")
    tree, made = tmp_path / "tree", tmp_path / "made"
    checkout(tree)
    code = f"from setuptools import build_meta; build_meta.build_sdist({str(made)!r})"
    run = subprocess.run([sys.executable, "-c", code], cwd=tree, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    (archive,) = made.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    tops = {name.split("/")[0] for name in names if name}
    assert tops <= {
        *PACKAGED,
        "README.md",
        "CHANGELOG.md",
        "MANIFEST.in",
        "PKG-INFO",
        "setup.cfg",
        "gradalign.egg-info",
    }
    assert {"CHANGELOG.md", "README.md", "setup.py", "pyproject.toml"} <= names
    of_sdist = wheel_of(archive, tmp_path / "of_sdist", "--no-build-isolation")
    assert of_sdist == wheel(tmp_path / "of_tree", "--no-build-isolation")


def test_the_documented_installation_names_what_the_build_requires():
    (required,) = re.findall(
        r'^requires = \["(setuptools[^"]*)"\]$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE
    )
    page = (ROOT / "docs" / "install.md").read_text()
    before = page.partition("pip install --no-build-isolation .")[0]
    assert f'pip install "{required}"' in before
