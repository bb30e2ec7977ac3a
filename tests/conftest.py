from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


def _import_benchmarks() -> None:
    """Make `benchmarks` importable without the root on the path, where the folder `kernels` would pass for a package."""
    spec = importlib.util.spec_from_file_location("benchmarks", ROOT / "benchmarks" / "__init__.py")
    sys.modules["benchmarks"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


sys.path[:] = [folder for folder in sys.path if Path(folder).resolve() != ROOT]
_import_benchmarks()


@pytest.fixture(autouse=True)
def _deterministic():
    """Every test starts from the same random numbers, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def asset():
    """Locates a pretrained model or a data set. Where it is not installed the test is skipped, or fails in CI."""
    from gradalign.cli.errors import CommandError
    from gradalign.cli.workload import assets

    def locate(name):
        try:
            return assets.locate(name)
        except CommandError as error:
            if os.environ.get("GRADALIGN_REQUIRE_ASSETS"):
                raise
            pytest.skip(str(error))

    return locate


@pytest.fixture
def scripts(monkeypatch):
    """Makes an importer of the scripts in a folder, which import one another; they are forgotten after the test."""
    folders = []

    def importer(folder):
        folders.append(Path(folder).resolve())
        monkeypatch.syspath_prepend(str(folder))
        return importlib.import_module

    yield importer
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file is not None and Path(file).resolve().parent in folders:
            del sys.modules[name]


def pytest_collection_modifyitems(items):
    """A bare `pytest` on a machine without a GPU says so instead of failing."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a GPU that this build of torch can use"))
