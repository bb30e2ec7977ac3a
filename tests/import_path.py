"""What tests import beside installed packages: `benchmarks`, and `support`, which holds what they share.

Each is made importable by its own name. The folders they lie in, the root of the repository and `tests`, are taken off the
path: each also has a folder `kernels`, which would pass for the package of that name that transformers looks for.

tests/conftest.py runs this file. A process that loads no conftest, a worker that is spawned for instance, runs it itself:

    runpy.run_path("tests/import_path.py")
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent


def remove_from_path(*folders: Path) -> None:
    """Take folders off the path; an empty entry is the working directory."""
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() not in folders]


def register_package(folder: Path) -> None:
    """Make one package importable without its parent folder on the path."""
    if folder.name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(folder.name, folder / "__init__.py")
    sys.modules[folder.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


remove_from_path(ROOT, TESTS)
register_package(ROOT / "benchmarks")
register_package(TESTS / "support")
