"""A library of one function, for the tests of how binaries are built and kept."""

from __future__ import annotations

import ctypes
from pathlib import Path

TINY = 'extern "C" __attribute__((visibility("default"))) int answer() { return 42; }\n'


def answer(path: Path) -> int:
    """What the function of a built library returns."""
    return ctypes.CDLL(str(path)).answer()
