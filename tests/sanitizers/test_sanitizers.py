from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from gradalign.extension import compiler

run = runpy.run_path(str(Path(__file__).with_name("run.py")))["run"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(compiler.find_compiler() is None, reason="no C++ compiler"),
]


@pytest.mark.parametrize(("sanitizer", "isa"), [("address", "portable"), ("address", "avx2"), ("thread", "portable")])
def test_kernels_under(sanitizer, isa):
    assert run(sanitizer, [isa]) == f"{isa}: no complaint\n"
