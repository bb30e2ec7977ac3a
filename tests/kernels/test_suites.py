"""The Triton tests that need a process of their own: the interpreter, and the offline compiles.

TRITON_INTERPRET is read when a kernel is defined, so that one process either interprets or compiles. This process does
neither; it starts `tests/kernels/interpreted` and `tests/kernels/compiled` side by side and reports what they say.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("triton")

HERE = Path(__file__).parent
SUITES = {
    "interpreted": {"TRITON_INTERPRET": "1"},
    "compiled": {"TRITON_INTERPRET": "0", "GRADALIGN_COMPILE_GATES": "1"},
}


@pytest.fixture(scope="module")
def running() -> Iterator[dict[str, subprocess.Popen]]:
    processes = {
        name: subprocess.Popen(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / name)],
            env=os.environ | {"OMP_NUM_THREADS": "1"} | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name, env in SUITES.items()
    }
    yield processes
    for process in processes.values():
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("name", SUITES)
def test_suite(running: dict[str, subprocess.Popen], name: str) -> None:
    output, _ = running[name].communicate()
    assert running[name].returncode == 0, output
    assert " passed" in output.splitlines()[-1]
