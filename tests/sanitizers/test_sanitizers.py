from __future__ import annotations

import pytest
from support.sanitizer import run

from gradalign.extension import compiler

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(compiler.find_compiler() is None, reason="no C++ compiler"),
]


@pytest.mark.parametrize(("sanitizer", "sets"), [("address", ["portable", "avx2"]), ("thread", ["portable"])])
def test_kernels_under(sanitizer, sets):
    assert run(sanitizer, sets) == "".join(f"{isa}: no complaint\n" for isa in sets)
