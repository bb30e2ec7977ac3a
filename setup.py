"""Maps the source tree onto the installed package, and builds the native extension ahead of time where torch is there.

`kernels/` is installed as `gradalign.kernels` (a package named `kernels` exists elsewhere) and the sources of
`csrc/` as `gradalign/csrc`, so that the native extension can be built at first use. An isolated build (`pip install .`)
has no torch and compiles nothing; `pip install --no-build-isolation .` compiles against the torch that is installed.
"""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).resolve().parent
CSRC = (
    "csrc",
    *sorted(f"csrc/{path.relative_to(HERE / 'csrc')}" for path in (HERE / "csrc").rglob("*") if path.is_dir()),
)


def extension_package() -> ModuleType:
    """`gradalign.extension` under another name: importing gradalign itself would import torch."""
    folder = HERE / "gradalign" / "extension"
    spec = importlib.util.spec_from_file_location(
        "gradalign_extension", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class BuildAheadOfTime(build_ext):
    """Hands the work to the builder that is used at first use, and puts the binaries beside the Python files."""

    def run(self) -> None:
        if self.inplace or getattr(self, "editable_mode", False):
            return  # a checkout changes: first use rebuilds what is out of date, in the cache
        package = extension_package()
        target = Path(self.build_lib) / "gradalign"
        target.mkdir(parents=True, exist_ok=True)
        for path, record in package.build_all(Path(self.build_temp)):
            self.copy_file(str(path), str(target / path.name))
            (target / path.name).with_suffix(".json").write_text(json.dumps(record))

    def get_outputs(self) -> list[str]:
        return [str(path) for path in (Path(self.build_lib) / "gradalign").glob("*") if path.suffix in (".so", ".json")]


def ahead_of_time() -> dict[str, object]:
    """What `setup` gets on top where torch is there; nothing on top with GRADALIGN_NATIVE=0."""
    if importlib.util.find_spec("torch") is None or extension_package().switched_off():
        return {}
    # The names of the sources only tell setuptools that the wheel holds binaries.
    return {
        "ext_modules": [Extension("gradalign._C", ["csrc/module.cpp"])],
        "cmdclass": {"build_ext": BuildAheadOfTime},
    }


setup(
    packages=[
        *find_packages(include=["gradalign", "gradalign.*"]),
        "gradalign.kernels",
        *(f"gradalign.{folder.replace('/', '.')}" for folder in CSRC),
    ],
    package_dir={
        "gradalign": "gradalign",
        "gradalign.kernels": "kernels",
        **{f"gradalign.{folder.replace('/', '.')}": folder for folder in CSRC},
    },
    package_data={
        "gradalign": ["py.typed", "*.pyi", "cli/workload/*.txt"],
        **{f"gradalign.{folder.replace('/', '.')}": ["*.h", "*.cpp", "*.cuh", "*.cu"] for folder in CSRC},
    },
    **ahead_of_time(),
)
