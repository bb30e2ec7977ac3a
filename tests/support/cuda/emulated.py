"""The CUDA ops on CPU tensors: csrc/cuda compiled for a GPU made of fibers (see emulator/cuda_runtime.h)."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from pathlib import Path
from types import ModuleType

import torch

from gradalign.backends import native, signatures
from gradalign.extension import ensure, library
from gradalign.extension.library import Library, Unit

EMULATOR = Path(__file__).resolve().parent / "emulator"


def emulated_library() -> Library:
    """The binary: the kernels as they are, the emulated runtime in the place of CUDA's."""
    cpu = library.cpu()
    torch_headers = next(unit.flags for unit in cpu.units if unit.source == "bindings.cpp")
    headers = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(EMULATOR.iterdir()))).hexdigest()
    flags = ("-O1", "-I", str(EMULATOR), "-x", "c++")
    kernels = sorted(path.name for path in (library.sources() / "cuda").glob("*.cu"))
    return Library(
        name="libgradalign_emulated.so",
        what="the CUDA kernels for an emulated GPU",
        units=(
            Unit(str(EMULATOR / "bindings.cpp"), "bindings.o", (*torch_headers, *flags)),
            Unit(str(EMULATOR / "fibers.cpp"), "fibers.o", flags),
            *(Unit(f"cuda/{name}", f"{name}.o", flags) for name in kernels),
        ),
        link=cpu.link,
        inputs=("math", "tensor", "cuda"),
        built_for=f"{cpu.built_for}, emulator {headers}",
    )


@functools.cache
def emulated() -> ModuleType:
    """A second copy of the native backend, whose kernels are the emulated ones."""
    reason = native.why_unavailable()
    if reason is not None:
        raise RuntimeError(reason)
    path = ensure(emulated_library())
    signatures.define("gradalign_emulated")
    torch.ops.load_library(path)

    spec = importlib.util.spec_from_file_location("gradalign_emulated", native.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.NAME = "cuda"
    module.NAMESPACE = "gradalign_emulated"
    module.IS_EMULATED = True
    return module
