"""Imports run one way: aligner -> estimators -> passes, buffers -> ops -> dispatch -> backends."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import gradalign

ROOT = Path(gradalign.__file__).parent

# Every room may import from those below it in this list, and from itself.
LAYERS = (
    ("__main__",),
    ("cli",),
    ("__init__",),
    ("aligner", "baselines", "tuning"),
    ("method",),
    ("estimators",),
    ("passes", "buffers"),
    ("sketch",),
    ("space", "replay", "batches", "objectives", "telemetry", "optim"),
    ("low_precision",),
    ("ops",),
    ("dispatch",),
    ("backends",),
    ("_C",),
    ("extension", "kernels"),
    ("weight",),
    ("checks", "op_checks"),
    ("addresses", "graph", "_version"),
)
RANK = {room: rank for rank, rooms in enumerate(LAYERS) for room in rooms}


def room(path):
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "gradalign":
            parts = node.module.split(".")[1:]
            yield from [parts[0]] if parts else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("gradalign."):
                    yield alias.name.split(".")[1]


def test_every_module_imports_only_from_below():
    wrong = []
    for path in ROOT.rglob("*.py"):
        here = room(path)
        assert here in RANK, f"{here} has no place in LAYERS"
        for target in imported(ast.parse(path.read_text())):
            if target != here and RANK.get(target, -1) <= RANK[here] and target in RANK:
                wrong.append(f"{path.relative_to(ROOT)} imports {target}")
    assert not wrong


@pytest.mark.parametrize("module", ["triton", "transformers", "matplotlib", "numpy.testing", "pybind11"])
def test_importing_the_package_imports_nothing_optional(module):
    code = f"import sys, gradalign; sys.exit({module!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
