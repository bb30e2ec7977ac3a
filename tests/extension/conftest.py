from __future__ import annotations

import pytest
from support.tiny_library import TINY

from gradalign.extension import compiler, library


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A cache of its own, below folders that only this user can write."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("GRADALIGN_CACHE_DIR", str(folder))
    monkeypatch.delenv("GRADALIGN_NATIVE", raising=False)
    return folder


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A library of one line, with sources of its own."""
    folder = tmp_path / "csrc"
    folder.mkdir()
    (folder / "tiny.cpp").write_text(TINY)
    for module in (library, compiler):
        monkeypatch.setattr(module, "sources", lambda: folder)
    unit = library.Unit("tiny.cpp", "tiny.o", ())
    return library.Library("libtiny.so", "a tiny library", (unit,), (), ("tiny.cpp",), "torch 2.10.0")


@pytest.fixture
def num_builds(monkeypatch):
    """A list that grows by one with every attempt to compile."""
    attempts = []
    original = compiler.build

    def counted(*args):
        attempts.append(1)
        return original(*args)

    monkeypatch.setattr(compiler, "build", counted)
    return attempts
