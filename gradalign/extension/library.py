"""What is compiled: the binaries, their sources and flags."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from . import processor

TORCH_TARGET = "0x020a000000000000"  # the LibTorch stable ABI as of 2.10: one binary for every torch from there on

# No contraction: a fused multiply-add would make the results depend on the instruction set. No errno, no traps: both keep
# loops with sqrt or a selection from being vectorised, and change no result.
COMMON = (
    *("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fopenmp-simd"),
    *("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-Wno-unknown-pragmas"),
)
INSTRUCTION_SETS = {
    "portable": "",
    "avx2": "-mavx2 -mfma -mf16c",
    "avx512": "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mprefer-vector-width=512",
}


@dataclass(frozen=True)
class Unit:
    """One compiler call."""

    source: str
    object: str
    flags: tuple[str, ...]
    compiler: tuple[str, ...] = ()  # another one than the C++ compiler; `flags` are all of its flags then


@dataclass(frozen=True)
class Library:
    """One binary: its units, how they are linked, and all that decides whether a cached one can be used."""

    name: str
    what: str
    units: tuple[Unit, ...]
    link: tuple[str, ...]
    inputs: tuple[str, ...]  # files and folders of csrc that it is made of
    built_for: str
    linker: tuple[str, ...] = ()  # another one than the C++ compiler
    architectures: tuple[str, ...] = ()  # of GPUs, as in "9.0+PTX"
    present: tuple[tuple[int, int], ...] = ()  # compute capabilities that it must run on

    def digest(self) -> str:
        """Of the names and contents of all inputs."""
        total = hashlib.sha256()
        root = str(sources())
        for path in self._files(root):
            total.update(os.path.relpath(path, root).encode() + b"\0")
            with open(path, "rb") as file:
                total.update(file.read())
        return total.hexdigest()

    def key(self, compiler: str) -> str:
        """The name of its place in the cache."""
        flags = [*COMMON, *(flag for unit in self.units for flag in unit.flags), *self.link]
        text = "\n".join((self.digest(), self.built_for, platform.system(), platform.machine(), compiler, *flags))
        return f"{self.name}-{hashlib.sha256(text.encode(errors='surrogateescape')).hexdigest()[:20]}"

    def _files(self, root: str) -> list[str]:
        # os.walk, not Path.rglob: this runs at every start of a process.
        inputs = [os.path.join(root, name) for name in self.inputs]
        inside = (os.path.join(folder, name) for top in inputs for folder, _, names in os.walk(top) for name in names)
        return sorted([*inside, *filter(os.path.isfile, inputs)])


def sources() -> Path:
    """`csrc`: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "csrc", package.parent / "csrc"):
        if (folder / "bindings.cpp").is_file():
            return folder
    raise FileNotFoundError(f"expected the sources of the kernels in {package / 'csrc'}; reinstall gradalign")


def torch_version() -> str:
    """The version of the torch that is compiled against, without importing it."""
    return importlib.metadata.version("torch")


def cpu(sets: Iterable[str] | None = None) -> Library:
    """The ops for the CPU, through the stable ABI, for these instruction sets or for all that the architecture knows."""
    torch = torch_folder()
    known = INSTRUCTION_SETS if processor.is_x86() else {"portable": ""}
    chosen = [isa for isa in known if sets is None or isa in sets]
    kernels = tuple(
        Unit("cpu/kernels.cpp", f"kernels_{isa}.o", (f"-DGRADALIGN_ISA={isa}", *known[isa].split())) for isa in chosen
    )
    # -O1: the bindings spend their time inside torch, and twice as long would be spent compiling them.
    slim = (f"-DTORCH_TARGET_VERSION={TORCH_TARGET}", "-O1", "-isystem", str(torch / "include"))
    return Library(
        name="libgradalign_cpu.so",
        what="the CPU kernels",
        units=(Unit("bindings.cpp", "bindings.o", slim), *kernels),
        link=(f"-L{torch / 'lib'}", "-ltorch_cpu", *_undefined_at_load()),
        inputs=("bindings.cpp", "plan.h", "math", "tensor", "cpu"),
        built_for=f"torch {torch_version()}",
    )


def cpu_here() -> Library:
    """The same for the one instruction set that runs here, in a third of the time: $GRADALIGN_CPU_ISA, or the widest."""
    found = processor.instruction_sets()
    if found is None:
        return cpu()
    named = os.environ.get("GRADALIGN_CPU_ISA")
    # A name that is not among them is refused when a kernel is chosen.
    return cpu([named] if named in found else found[:1])


def module() -> Library:
    """`gradalign._C`: build information, the launch planner, the reader of lists of tensors; no torch header in it."""
    pybind11 = importlib.util.find_spec("pybind11")
    if pybind11 is None or pybind11.origin is None:
        raise ModuleNotFoundError("pybind11 is missing; pip install pybind11")
    python = sysconfig.get_paths()["include"]
    if not (Path(python) / "Python.h").is_file():
        raise ModuleNotFoundError(f"Python.h is missing from {python}; install the headers of Python (python3-dev)")
    headers = ("-isystem", str(Path(pybind11.origin).parent / "include"), "-isystem", python)
    return Library(
        name=f"_C{sysconfig.get_config_var('EXT_SUFFIX')}",
        what="gradalign._C",
        units=(Unit("module.cpp", "module.o", ("-O1", *headers)),),
        link=_undefined_at_load(),
        inputs=("module.cpp", "agreement.h", "plan.h", "reader.h", "tensor/row.h", "tensor/operand.h"),
        built_for=f"python {sysconfig.get_config_var('SOABI')}",
    )


def torch_folder() -> Path:
    """Where torch is installed, without importing it."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("torch is missing; pip install torch")
    return Path(spec.origin).parent


def _undefined_at_load() -> tuple[str, ...]:
    return ("-undefined", "dynamic_lookup") if sys.platform == "darwin" else ()
