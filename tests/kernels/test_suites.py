"""The Triton tests that need a process of their own: the interpreter, and the offline compiles.

TRITON_INTERPRET is read when a kernel is defined, so that one process either interprets or compiles. This process does
neither; it starts processes for `tests/kernels/interpreted` and `tests/kernels/compiled` and reports what they say.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

HERE = Path(__file__).parent
INTERPRETED = {"TRITON_INTERPRET": "1"}
SUITES = {
    "compiled": {"TRITON_INTERPRET": "0", "GRADALIGN_COMPILE_GATES": "1"},
    **{f"interpreted/{path.name}": INTERPRETED for path in sorted((HERE / "interpreted").glob("test_*.py"))},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SUITES)
def test_suite(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / name)],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | SUITES[name],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout.splitlines()[-1]
