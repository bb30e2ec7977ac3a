from __future__ import annotations

import contextlib
import importlib
import os
import runpy
import sys
from pathlib import Path

import pytest
import torch

runpy.run_path(str(Path(__file__).with_name("import_path.py")))


@pytest.fixture(autouse=True)
def _deterministic():
    """Every test starts from the same random numbers, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def default_dtype():
    """Sets torch's default dtype until the test ends."""
    before = torch.get_default_dtype()
    yield torch.set_default_dtype
    torch.set_default_dtype(before)


@contextlib.contextmanager
def skipping_where_an_asset_is_missing():
    """Without an asset a test is skipped, with the command that installs it; in CI it fails."""
    from gradalign.cli.workload.assets import MissingAssetError

    try:
        yield
    except MissingAssetError as error:
        if os.environ.get("GRADALIGN_REQUIRE_ASSETS"):
            raise
        pytest.skip(str(error))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup():
    with skipping_where_an_asset_is_missing():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call():
    with skipping_where_an_asset_is_missing():
        return (yield)


@pytest.fixture(scope="session")
def asset():
    """Locates a pretrained model or a data set, for tests that need one which only another process asks for."""
    from gradalign.cli.workload import assets

    return assets.locate


@pytest.fixture
def scripts(monkeypatch):
    """An importer of the scripts in a folder, which import one another; they are forgotten after the test."""
    folders = []

    def importer(folder):
        folders.append(str(Path(folder).resolve()))
        monkeypatch.syspath_prepend(folders[-1])
        return importlib.import_module

    yield importer
    for name, module in list(sys.modules.items()):
        if os.path.dirname(getattr(module, "__file__", None) or "") in folders:
            del sys.modules[name]


def pytest_collection_modifyitems(items):
    """The longest tests come first, so that no process has one left when the others are done.

    On a machine without a GPU the tests that need one are skipped with this reason.
    """
    items.sort(key=lambda item: item.path.name != "test_suites.py")
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a GPU that this build of torch can use"))
