"""Peak memory above plain training with the same optimizer, in copies of the parameters (issue: at most 1.1 for lean split)."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
from support.fresh_process import fresh_python

IMPORT_PATH = Path(__file__).parents[1] / "import_path.py"
PROBE = "import runpy, sys; runpy.run_path(sys.argv[1]); from support import memory_probe; memory_probe.report(*sys.argv[2:])"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the high-water mark is read from Linux's /proc"),
]


@functools.cache
def measured(method, dtype="float32"):
    return json.loads(fresh_python("-c", PROBE, IMPORT_PATH, method, dtype, check=True).stdout)


def extra_copies(dtype="float32", **options):
    plain, aligned = measured("plain", dtype), measured(json.dumps(options), dtype)
    assert aligned["parameters"] >= (200e6 if dtype == "float32" else 100e6)
    return (aligned["peak"] - plain["peak"]) / aligned["parameters"]


@pytest.mark.parametrize(
    ("objective", "normalize", "backend"), [("dot", "direction", "reference"), ("norm", "none", "auto")]
)
def test_lean_split_keeps_one_copy(objective, normalize, backend):
    assert 0.5 < extra_copies(objective=objective, normalize=normalize, backend=backend) <= 1.1


@pytest.mark.parametrize(
    ("options", "copies"),
    [
        ({"baseline": "SAM"}, 1),
        ({"baseline": "SAM", "per_micro_batch": True}, 2),
        ({"baseline": "Reptile"}, 1),
        ({"baseline": "FOMAML"}, 1),
    ],
)
def test_baselines_keep_what_they_say(options, copies):
    assert copies - 0.5 < extra_copies(**options) <= copies + 0.1


def test_masters_make_the_backup_unnecessary():
    # A backup would be 1.
    assert extra_copies("bfloat16", masters=True) <= 0.5
    assert extra_copies("bfloat16") > 0.6


@pytest.mark.parametrize(
    ("options", "copies"),
    [
        ({"objective": "variance"}, 3),
        ({"objective": "variance", "sources": "aabb"}, 3),
        ({"objective": "cosine"}, 4),
        ({"objective": "cosine", "accumulate": True}, 4),
    ],
)
def test_a_displacement_with_the_own_gradient_keeps_three_and_unit_gradients_one_more(options, copies):
    options |= {"sources": list(options["sources"])} if "sources" in options else {}
    assert copies - 0.5 < extra_copies(**options) <= copies + 0.2
