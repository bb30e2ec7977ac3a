"""Imports run one way: the order of layers in docs/design.md holds, and no module imports itself through others.

Every import counts, wherever it is: at the top of a file, in a function, under `if TYPE_CHECKING`, by `importlib` with a
constant name. (A type that is needed in both directions shows that two modules share a subject: it gets a module of its own.)
"""

from __future__ import annotations

import ast
import functools
import graphlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.fresh_process import fresh_python

ROOT = Path(__file__).parents[1]
FOLDERS = {"gradalign": "gradalign", "gradalign.kernels": "kernels", "benchmarks": "benchmarks"}
LAYERS_BLOCK = re.compile(r"^```layers\n(.*?)^```", re.MULTILINE | re.DOTALL)


def module_name(package: str, folder: Path, path: Path) -> str:
    parts = [package, *path.relative_to(folder).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module_name(package, ROOT / folder, path): path
    for package, folder in FOLDERS.items()
    for path in sorted((ROOT / folder).rglob("*.py"))
}


def imports(module: str, path: Path) -> Iterator[str]:
    """The project's modules that a file imports; the packages around them, which Python imports too, do not count."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for name, names in imported_names(ast.parse(path.read_text()), package):
        for found in {f"{name}.{n}" if f"{name}.{n}" in MODULES else name for n in names} or {name}:
            if found.partition(".")[0] in ("gradalign", "benchmarks", "tests", "support"):
                yield found


def imported_names(tree: ast.AST, package: str) -> Iterator[tuple[str, list[str]]]:
    """(module, names taken from it) of every import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            yield ".".join([*parents, *filter(None, [node.module])]), [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from ((arg.value, []) for arg in node.args[:1] if isinstance(arg, ast.Constant))


def read_layers() -> dict[str, int]:
    """Name -> line in the block of docs/design.md, the top line being 0."""
    (block,) = LAYERS_BLOCK.findall((ROOT / "docs" / "design.md").read_text())
    placed = [(name, number) for number, line in enumerate(block.splitlines()) for name in line.split()]
    assert len({name for name, _ in placed}) == len(placed), "a name stands in the block twice"
    return dict(placed)


LAYERS = read_layers()
OURS = [module for module in MODULES if module.startswith("gradalign")]


@functools.cache
def all_imports() -> dict[str, list[str]]:
    """Of every module; not read while tests are collected."""
    return {module: sorted(set(imports(module, path))) for module, path in MODULES.items()}


def layer_name(module: str) -> str | None:
    """The longest name in the block that is the module or a package around it."""
    name = module.removeprefix("gradalign").removeprefix(".") or "__init__"
    while name and name not in LAYERS:
        name = name.rpartition(".")[0]
    return name or None


def test_every_module_has_a_layer():
    assert [module for module in OURS if layer_name(module) is None] == []
    assert sorted(set(LAYERS) - {layer_name(module) for module in OURS}) == [], "names that no file has"


def test_every_module_imports_only_from_lower_layers():
    wrong = []
    for module in OURS:
        here = layer_name(module)
        for target in all_imports()[module]:
            there = layer_name(target) if target in MODULES and target.startswith("gradalign") else None
            if there is None or (there != here and LAYERS[there] <= LAYERS[here]):
                wrong.append(f"{module} imports {target}")
    assert wrong == []


def cycle(graph: dict[str, list[str]]) -> list[str]:
    """The modules of one cycle, in order; empty where there is none."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def test_no_module_imports_itself_through_others():
    assert cycle(all_imports()) == []


def test_benchmarks_use_the_public_package_and_of_the_command_line_only_what_is_shared():
    cli = "gradalign.cli"
    shared = tuple(f"{cli}.{name}." for name in ("workload", "errors", "machine", "options", "places"))
    wrong = [
        f"{module} imports {target}"
        for module in MODULES
        if module.startswith("benchmarks")
        for target in all_imports()[module]
        if f"{target}.".startswith(f"{cli}.") and not f"{target}.".startswith(shared)
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("import gradalign", "gradalign"),
        ("import gradalign.ops as o", "gradalign.ops"),
        ("from gradalign import ops", "gradalign.ops"),
        ("from gradalign import GradAlign", "gradalign"),
        ("from gradalign.engine.step import Step", "gradalign.engine.step"),
        ("from . import sums", "gradalign.engine.sums"),
        ("from .sums import Sums", "gradalign.engine.sums"),
        ("from ..estimators import split", "gradalign.estimators.split"),
        ("def f():\n    from gradalign import ops", "gradalign.ops"),
        ("if TYPE_CHECKING:\n    from gradalign import ops", "gradalign.ops"),
        ('importlib.import_module("gradalign.kernels")', "gradalign.kernels"),
        ("import benchmarks", "benchmarks"),
    ],
)
def test_every_form_of_import_is_seen(statement, found, tmp_path):
    path = tmp_path / "new.py"
    path.write_text(statement)
    assert list(imports("gradalign.engine.new", path)) == [found]


def test_a_cycle_of_two_files_is_seen():
    assert cycle({"a": ["b"], "b": ["c"], "c": []}) == []
    assert sorted(set(cycle({"a": ["b"], "b": ["a"]}))) == ["a", "b"]


@pytest.fixture(scope="module")
def loaded():
    """The modules that `import gradalign` loads."""
    code = "import sys, gradalign; print(*sys.modules)"
    return fresh_python("-c", code, check=True).stdout.split()


@pytest.mark.parametrize("module", ["triton", "transformers", "matplotlib", "numpy.testing", "pybind11"])
def test_importing_the_package_imports_nothing_optional(module, loaded):
    assert "gradalign.aligner" in loaded
    assert module not in loaded
