"""Tests can import what they share, and no folder of the repository passes for a package that it is not."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from support.fresh_process import fresh_python

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent


def test_no_folder_passes_for_the_package_kernels_that_transformers_looks_for():
    spec = importlib.util.find_spec("kernels")
    places = [] if spec is None else list(spec.submodule_search_locations or [])
    assert not {ROOT / "kernels", TESTS / "kernels"} & {Path(place).resolve() for place in places}


def test_what_tests_share_is_importable():
    assert Path(importlib.import_module("support.oracle").__file__) == TESTS / "support" / "oracle.py"
    assert Path(importlib.import_module("benchmarks").__file__) == ROOT / "benchmarks" / "__init__.py"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "workers"), [(ROOT, ()), (TESTS, ()), (ROOT, ("-n", "1"))], ids=["root", "tests", "worker"]
)
def test_both_hold_under_python_m_pytest(folder, workers):
    """It starts with the working directory on the path, as `pytest` does not."""
    options = ["-q", "-p", "no:cacheprovider", "-k", "kernels or importable", *workers]
    done = fresh_python("-m", "pytest", *options, __file__, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


@pytest.mark.parametrize("folder", [ROOT, TESTS], ids=["root", "tests"])
def test_both_hold_in_a_process_without_pytest(folder):
    code = (
        "import importlib.util, runpy, sys; runpy.run_path(sys.argv[1]); import benchmarks, support; "
        "spec = importlib.util.find_spec('kernels'); "
        "print(spec and spec.submodule_search_locations)"
    )
    done = fresh_python("-c", code, TESTS / "import_path.py", cwd=folder, check=True)
    assert str(folder / "kernels") not in done.stdout
