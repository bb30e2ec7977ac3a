"""What is in the cache is whole and private, or is made again."""

from __future__ import annotations

import os
import stat

import pytest
from support.tiny_library import answer

from gradalign.backends import native
from gradalign.cli import doctor
from gradalign.extension import UnavailableError, cache, compiler, ensure, loading

pytestmark = pytest.mark.skipif(compiler.find_compiler() is None, reason="no C++ compiler")


@pytest.mark.parametrize("length", [0, 1000, 12_000])
def test_a_truncated_binary_is_made_again(home, tiny, num_builds, length):
    path = ensure(tiny)
    assert path.stat().st_size > length
    os.truncate(path, length)
    assert answer(ensure(tiny)) == 42
    assert len(num_builds) == 2
    assert ensure(tiny) == path
    assert len(num_builds) == 2


def test_a_binary_with_a_wrong_byte_is_made_again(home, tiny, num_builds):
    path = ensure(tiny)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert answer(ensure(tiny)) == 42
    assert len(num_builds) == 2


@pytest.mark.parametrize("content", [None, "", '{"size": 1', "[]"])
def test_a_binary_without_a_readable_record_is_made_again(home, tiny, num_builds, content):
    path = ensure(tiny)
    record = path.with_name(f"{path.name}.json")
    record.unlink() if content is None else record.write_text(content)
    assert answer(ensure(tiny)) == 42
    assert len(num_builds) == 2


def test_a_binary_is_on_the_disk_before_it_has_its_name(home, tiny, monkeypatch):
    synced = []
    original = os.fsync

    def recorded(descriptor):
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        assert not list(home.glob("*/libtiny.so")) or synced[-1] == str(home)
        original(descriptor)

    monkeypatch.setattr(os, "fsync", recorded)
    ensure(tiny)
    names = [name.rpartition("/")[2] for name in synced]
    assert {"libtiny.so", "libtiny.so.json"} <= set(names)
    assert synced[-1] == str(home)  # the folder in which the name appears


@pytest.mark.parametrize("umask", [0o002, 0o000, 0o277])
def test_every_folder_made_for_the_cache_is_private(tmp_path, monkeypatch, umask):
    monkeypatch.setenv("GRADALIGN_CACHE_DIR", str(tmp_path / "a" / "b" / "c"))
    before = os.umask(umask)
    try:
        root = cache.open_directory()
    finally:
        os.umask(before)
    for folder in (root, root.parent, root.parent.parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700, folder


def test_folders_that_were_there_keep_their_mode(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir(mode=0o755)
    (tmp_path / "a").chmod(0o755)
    monkeypatch.setenv("GRADALIGN_CACHE_DIR", str(tmp_path / "a" / "b"))
    cache.open_directory()
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o755


def test_a_build_under_a_loose_umask_is_used_again(home, tiny, num_builds):
    before = os.umask(0o002)
    try:
        assert ensure(tiny) == ensure(tiny)
    finally:
        os.umask(before)
    assert len(num_builds) == 1


def test_the_loaders_own_reason_is_found_below_torchs(tmp_path):
    import torch

    path = tmp_path / "libtiny.so"
    path.write_text("no binary at all, but long enough to hold the header of one" * 9)
    with pytest.raises(OSError, match="Could not load this library") as caught:
        torch.ops.load_library(str(path))
    reason = loading.why_not_loaded(caught.value, path)
    assert reason.startswith("the built kernels do not load: ")
    assert "invalid ELF header" in reason
    assert reason.endswith(f"; delete {tmp_path} to build them again")


def test_a_file_system_that_lets_nothing_run_has_a_remedy_of_its_own(tmp_path):
    error = OSError("x.so: failed to map segment from shared object")
    assert loading.why_not_loaded(error, tmp_path / "x.so").endswith(
        "; set GRADALIGN_CACHE_DIR to a folder on a file system that is not mounted noexec"
    )


def test_a_shipped_binary_that_does_not_load_is_not_for_the_user_to_delete(monkeypatch, tmp_path):
    monkeypatch.setattr(loading, "_package", lambda: tmp_path)
    assert loading.why_not_loaded(OSError("x"), tmp_path / "x.so").endswith("x; reinstall gradalign")


def test_the_loaders_reason_reaches_the_native_backend(monkeypatch, tmp_path):
    path = tmp_path / "libgradalign_cpu.so"
    path.write_text("no binary at all, but long enough to hold the header of one" * 9)
    monkeypatch.setattr(native, "ensure", lambda library: path)
    monkeypatch.setattr(native, "why_unavailable", native.why_unavailable.__wrapped__)  # not what is known already
    state = doctor.diagnose("native", {}, gpu=False)
    assert "the built kernels do not load: " in state["why_not"]
    assert "invalid ELF header" in state["why_not"]
    assert state["remedy"] == f"delete {tmp_path} to build them again"


def test_a_module_that_does_not_load_says_why(monkeypatch, tmp_path):
    path = tmp_path / "_C.so"
    path.write_text("no binary at all, but long enough to hold the header of one" * 9)
    monkeypatch.setattr(loading, "ensure", lambda library: path)
    with pytest.raises(UnavailableError, match="the built kernels do not load: .*invalid ELF header; delete"):
        loading.load_module()
