"""The guards that count hold: a step that got slower on the host fails here, not when somebody runs `make bench-guards`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TIMED = "test_the_ratio_to_plain or test_reading_lists"  # which a busy machine decides


def test_the_counts_are_within_their_bounds():
    command = [sys.executable, "-m", "pytest", "benchmarks/guards", "-q", "--benchmark-disable", "-k", f"not ({TIMED})"]
    found = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
    )
    assert found.returncode == 0, found.stdout
