"""The CUDA kernels: a binary of their own, since torch without CUDA lacks what it links against.

nvcc comes from $CUDA_HOME (or $CUDA_PATH), the PATH, or /usr/local/cuda. The architectures are those of $TORCH_CUDA_ARCH_LIST,
else of the GPUs present, else `DEFAULT_ARCHITECTURES` and PTX for later ones. cudart is linked statically: the binary meets
torch's own only in the driver.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from .compiler import TEXT
from .library import TORCH_TARGET, Library, Unit, sources, torch_folder, torch_version

DEFAULT_ARCHITECTURES = ("8.0", "9.0", "10.0+PTX")
BEFORE_BLACKWELL = ("8.0", "9.0+PTX")  # for an nvcc that does not know compute capability 10.0
BLACKWELL = 12, 8  # the first CUDA release that does

# No contraction, as for the CPU: both compute the same bits. What may be fused (sums, moments) says so in the source.
FLAGS = ("-std=c++17", "-O3", "-fmad=false", "--expt-relaxed-constexpr", "-Xcompiler=-fPIC,-fvisibility=hidden")

OLDEST = 12, 1  # CUDA releases before have 4 KB for the arguments of a kernel


def find_nvcc() -> str:
    """The path of nvcc.

    Raises:
        ModuleNotFoundError: there is none, or it is too old.
    """
    roots = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    named = [str(Path(root) / "bin" / "nvcc") for root in roots if root]
    for candidate in (*named, "nvcc", "/usr/local/cuda/bin/nvcc"):
        found = shutil.which(candidate)
        if found:
            return _recent(str(Path(found).absolute()))  # builds run in a folder of their own
    raise ModuleNotFoundError(
        "nvcc is missing; install the CUDA toolkit (12.1 or later), or set CUDA_HOME to where it is"
    )


def nvcc_version(nvcc: str) -> str:
    """Its release, as "13.0"."""
    try:
        said = subprocess.run([nvcc, "--version"], capture_output=True, check=False, **TEXT).stdout
    except OSError:
        said = ""
    found = re.search(r"release (\d+\.\d+)", said)
    if found is None:
        raise ModuleNotFoundError(f"{nvcc} does not say which release it is; set CUDA_HOME to a CUDA toolkit")
    return found[1]


def _recent(nvcc: str) -> str:
    version = nvcc_version(nvcc)
    if _release(version) < OLDEST:
        raise ModuleNotFoundError(
            f"expected the nvcc of CUDA 12.1 or later; got {version} in {nvcc}; set CUDA_HOME to a later one"
        )
    return nvcc


def architectures(present: Sequence[tuple[int, int]] = ()) -> tuple[str, ...]:
    """What to compile for, as in "9.0" or "9.0+PTX".

    Args:
        present: compute capabilities of the GPUs at hand.

    Raises:
        ModuleNotFoundError: a $TORCH_CUDA_ARCH_LIST that is not understood, or no nvcc where neither says what.
    """
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(";", " ").split()
    for name in listed:
        if not re.fullmatch(r"\d+\.\d+[af]?(\+PTX)?", name):
            raise ModuleNotFoundError(f'TORCH_CUDA_ARCH_LIST: expected names such as "9.0" or "9.0+PTX"; got {name!r}')
    own = tuple(sorted({f"{major}.{minor}" for major, minor in present}))
    if listed or own:
        return tuple(listed) or own
    return DEFAULT_ARCHITECTURES if _release(nvcc_version(find_nvcc())) >= BLACKWELL else BEFORE_BLACKWELL


def _release(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def code_flags(names: Sequence[str]) -> tuple[str, ...]:
    """nvcc's options for these architectures."""
    flags = []
    for name in names:
        number = name.removesuffix("+PTX").replace(".", "")
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if name.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return tuple(flags)


def ahead_of_time() -> Library:
    """For a wheel, whatever GPU is here now.

    Raises:
        ModuleNotFoundError: no nvcc, or a torch that could not load the binary.
    """
    if not _torch_has_cuda():
        raise ModuleNotFoundError("the CUDA kernels need a torch with CUDA; install one")
    return cuda(architectures())


def _torch_has_cuda() -> bool:
    return (torch_folder() / "lib" / "libtorch_cuda.so").is_file()


def cover(names: Sequence[str], present: Sequence[tuple[int, int]]) -> bool:
    """Whether what was compiled for these architectures runs on GPUs of these compute capabilities."""
    return all(any(_runs(name, capability) for name in names) for capability in present)


def _runs(name: str, capability: tuple[int, int]) -> bool:
    exact, ptx = re.sub(r"[af]?(\+PTX)?$", "", name), name.endswith("+PTX")
    major, minor = map(int, exact.split("."))
    if re.search(r"[af]", name.removesuffix("+PTX")):  # of that GPU alone
        return (major, minor) == capability
    return (major == capability[0] and minor <= capability[1]) or (ptx and (major, minor) <= capability)


def contents(present: Sequence[tuple[int, int]] = ()) -> Library:
    """What decides whether a binary that was made elsewhere fits: all but how it is compiled, for which nvcc is needed."""
    return Library(
        name="libgradalign_cuda.so",
        what="the CUDA kernels",
        units=(),
        link=(),
        inputs=("math", "tensor", "cuda"),
        built_for=f"torch {torch_version()}",
        present=tuple(present),
    )


def cuda(names: Sequence[str], present: Sequence[tuple[int, int]] = ()) -> Library:
    """The ops for CUDA devices of these architectures, through the stable ABI.

    Args:
        names: to compile for.
        present: compute capabilities of the GPUs at hand.

    Raises:
        ModuleNotFoundError: no nvcc, or no torch.
    """
    nvcc, torch = find_nvcc(), torch_folder()
    release = f"-DGRADALIGN_NVCC={nvcc_version(nvcc)}"  # among the flags, which decide whether a cached binary fits
    stable = ("-DUSE_CUDA", f"-DTORCH_TARGET_VERSION={TORCH_TARGET}", "-isystem", str(torch / "include"))
    kernels = sorted(path.name for path in (sources() / "cuda").glob("*.cu"))
    targets = code_flags(names)
    return replace(
        contents(present),
        what=f"the CUDA kernels for {', '.join(names)}",
        units=(
            Unit("cuda/bindings.cpp", "bindings.o", (*FLAGS, release, *stable), (nvcc,)),
            *(
                Unit(f"cuda/{name}", name.replace(".cu", ".o"), (*FLAGS, release, *targets), (nvcc,))
                for name in kernels
            ),
        ),
        link=(
            "-cudart=static",
            "-nodlink",
            f"-L{torch / 'lib'}",
            "-ltorch_cpu",
            *(["-ltorch_cuda"] if _torch_has_cuda() else []),
        ),
        linker=(nvcc,),
        architectures=tuple(names),
    )
