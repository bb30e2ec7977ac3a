"""The sources run on the oldest Python that pyproject.toml claims: its syntax, and nothing that its library lacks.

mypy checks the library for the packages it reads (`python_version` in pyproject.toml); this also reads what it does not.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OLDEST = (
    3,
    int(re.search(r'^requires-python = ">=3\.(\d+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]),
)
FOLDERS = ("gradalign", "kernels", "examples", "benchmarks")
SOURCES = [ROOT / "setup.py", *(path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py")))]

# Of the library, what came with 3.11 or later and is likely to be used. Where the oldest Python changes, so does this list.
NEWER = {
    "asyncio": {"Barrier", "Runner", "TaskGroup", "timeout", "timeout_at"},
    "builtins": {"BaseExceptionGroup", "ExceptionGroup", "PythonFinalizationError"},
    "collections.abc": {"Buffer"},
    "contextlib": {"chdir"},
    "copy": {"replace"},
    "datetime": {"UTC"},
    "enum": {"EnumCheck", "FlagBoundary", "ReprEnum", "StrEnum", "global_enum", "member", "nonmember", "verify"},
    "functools": {"Placeholder"},
    "hashlib": {"file_digest"},
    "inspect": {"getasyncgenstate", "getmembers_static", "markcoroutinefunction"},
    "itertools": {"batched"},
    "logging": {"getHandlerByName", "getLevelNamesMapping"},
    "math": {"cbrt", "exp2", "fma", "sumprod"},
    "operator": {"call"},
    "os": {"process_cpu_count"},
    "re": {"NOFLAG"},
    "sys": {"exception", "monitoring"},
    "tomllib": set(),
    "types": {"get_original_bases"},
    "typing": {
        *(
            "LiteralString",
            "Never",
            "NotRequired",
            "ReadOnly",
            "Required",
            "Self",
            "TypeAliasType",
            "TypeIs",
            "TypeVarTuple",
        ),
        *("Unpack", "assert_never", "assert_type", "dataclass_transform", "override", "reveal_type"),
    },
    "warnings": {"deprecated"},
}
METHODS = {"add_note", "is_junction"}  # of exceptions and of paths


def newer(text):
    """What a source uses that the oldest Python lacks, by line; a SyntaxError where it cannot be read."""
    tree = ast.parse(text, feature_version=OLDEST)
    modules = {}  # name in this source -> module
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.asname or alias.name: alias.name for alias in node.names}
    for node in ast.walk(tree):
        found = []
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names if NEWER.get(alias.name) == set()]
        elif isinstance(node, ast.ImportFrom) and node.module in NEWER:
            names = {alias.name for alias in node.names}
            found = [
                f"{node.module}.{name}"
                for name in names & NEWER[node.module] or ({"*"} if not NEWER[node.module] else ())
            ]
        elif isinstance(node, ast.Attribute):
            module = modules.get(ast.unparse(node.value))
            found = [f"{module}.{node.attr}"] if node.attr in NEWER.get(module, ()) else []
            found += [node.attr] * (node.attr in METHODS)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in NEWER["builtins"]:
            found = [node.id]
        elif isinstance(node, ast.Subscript) and _unpacks_bare(node.slice):
            found = ["x[*y] without parentheses"]  # which `feature_version` lets pass
        yield from (f"line {node.lineno}: {name}" for name in found)


def _unpacks_bare(index):
    """Whether an index unpacks something and has no parentheses: these would begin before its first element."""
    starred = isinstance(index, ast.Tuple) and any(isinstance(part, ast.Starred) for part in index.elts)
    return starred and (index.lineno, index.col_offset) == (index.elts[0].lineno, index.elts[0].col_offset)


def test_the_sources_are_those_of_the_oldest_python():
    wrong = {str(path.relative_to(ROOT)): found for path in SOURCES if (found := list(newer(path.read_text())))}
    assert wrong == {}
    assert len(SOURCES) > 200


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("import tomllib", ["line 1: tomllib"]),
        ("from tomllib import loads", ["line 1: tomllib.*"]),
        ("from enum import Enum, StrEnum", ["line 1: enum.StrEnum"]),
        ("import datetime as dt\ndt.UTC", ["line 2: datetime.UTC"]),
        ("import collections.abc\ncollections.abc.Buffer", ["line 2: collections.abc.Buffer"]),
        ("raise ExceptionGroup('', [])", ["line 1: ExceptionGroup"]),
        ("error.add_note('')", ["line 1: add_note"]),
        ("x[(0, *y)]\nx[(*y, 0)]\nx[0, 1]", []),
        ("from typing import Any\nimport math\nmath.sqrt(2)", []),
    ],
)
def test_what_is_newer_is_found(text, found):
    assert list(newer(text)) == found


@pytest.mark.skipif(sys.version_info < (3, 11), reason="a SyntaxError in Python 3.10 itself")
def test_an_index_that_unpacks_without_parentheses_is_found():
    assert list(newer("x[0, *y]")) == ["line 1: x[*y] without parentheses"]


@pytest.mark.parametrize("text", ["try:\n    f()\nexcept* OSError:\n    pass", "type X = int", "def f[T](x: T): pass"])
def test_newer_syntax_is_an_error(text):
    with pytest.raises(SyntaxError):
        list(newer(text))
