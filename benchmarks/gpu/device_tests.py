"""The tests that need a GPU, a process for each file: after an illegal access every call to the GPU fails in its process."""

from __future__ import annotations

import ast
import re
import sys
import time
from collections import Counter
from itertools import chain, zip_longest
from pathlib import Path

from benchmarks import ROOT
from benchmarks.gpu.process import OUT_OF_TIME, execute

PYTEST = (sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider")
TELLING = ("-v", "--tb=short")  # the name of a test is written before it runs: a process that is killed says no more
HANGING = 30.0  # seconds after which a test has its stack written down
SUMMARY = re.compile(r"^=+ (.+) in [\d.]+s\b.*=+$", re.MULTILINE)
COUNT = re.compile(r"(\d+) (passed|failed|skipped|xfailed|xpassed|error)s?\b")
OUTCOME = re.compile(r"^\S+\.py::.* (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b", re.MULTILINE)
NOTHING_COLLECTED = 5  # of a file whose conftest marks what it does not use
LEAST = 5.0  # seconds
# Seconds that a file may take whatever its part is, where so many are left for each file after it.
LONGEST, RESERVED = 60.0, 11.0


def files() -> list[str]:
    """The files with tests that need a GPU, by their own mark or that of the conftest beside them.

    One of each folder comes before the second of any. Others may import what a bare machine lacks.
    """
    by_folder: dict[Path, list[str]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        if _marks(path) or _marks(path.with_name("conftest.py")):
            by_folder.setdefault(path.parent, []).append(str(path.relative_to(ROOT)))
    return [name for name in chain.from_iterable(zip_longest(*by_folder.values())) if name is not None]


def _marks(path: Path) -> bool:
    """Whether its code, and not a text in it, has the mark."""
    text = path.read_text() if path.is_file() else ""
    if "pytest.mark.gpu" not in text:
        return False
    return any(isinstance(n, ast.Attribute) and ast.unparse(n) == "pytest.mark.gpu" for n in ast.walk(ast.parse(text)))


def collect(seconds: float) -> tuple[bool, str]:
    """Which tests would run."""
    status, text = execute([*PYTEST, "--collect-only", "-q", *files()], seconds)
    return status == 0, text


def run(seconds: float) -> tuple[bool, str]:
    """Every test that needs a GPU.

    A file may take twice its part of the time that is left, so that one which hangs leaves some to every other; or a minute,
    since the first one compiles what others find.
    """
    end, names = time.monotonic() + seconds, files()
    outcomes: Counter[str] = Counter()
    texts, faults = [], []
    for number, name in enumerate(names):
        rest, after = end - time.monotonic(), len(names) - number - 1
        left = max(2 * rest / (after + 2), min(LONGEST, rest - RESERVED * after))
        if left < LEAST:
            faults.append(f"no time left: {name}")
            continue
        hanging = f"faulthandler_timeout={min(HANGING, left / 2):.0f}"
        status, text = execute([*PYTEST, *TELLING, "-o", hanging, name], left)
        outcomes += _outcomes(text)
        texts.append(f"{name}\n{text}\n")
        if status not in (0, NOTHING_COLLECTED):
            faults.append(f"{'out of time' if status == OUT_OF_TIME else f'exit status {status}'}: {name}")
    counts = ", ".join(f"{n} {outcome}" for outcome, n in outcomes.most_common()) or "no test ran"
    return not faults and outcomes["passed"] > 0, "\n".join([*texts, "; ".join([counts, *faults])])


def _outcomes(text: str) -> Counter[str]:
    """How many tests passed, failed and so on: as pytest sums them up, or line by line where it did not come to that."""
    found = SUMMARY.findall(text)
    if found:
        return Counter({outcome: int(number) for number, outcome in COUNT.findall(found[-1])})
    return Counter(outcome.lower() for outcome in OUTCOME.findall(text))
