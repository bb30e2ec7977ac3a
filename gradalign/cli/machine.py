"""What this machine is: processor, accelerators, compilers, versions. Nothing here raises where something is missing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from gradalign.extension import processor

# Tool: the argument that makes it say its version.
COMPILERS = {
    "g++": "--version",
    "clang++": "--version",
    "nvcc": "--version",
    "hipcc": "--version",
    "ninja": "--version",
}


def versions(*packages: str) -> dict[str, str | None]:
    """Python's version and those of installed packages, None for what is not installed; nothing is imported."""
    return {"python": platform.python_version(), **{name: _installed(name) for name in packages}}


def _installed(package: str) -> str | None:
    try:
        # torch's own word names its build (+cpu, +cu130), which its wheel may leave out.
        return str(torch.__version__) if package == "torch" else importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu() -> dict[str, object]:
    """Model, cores this process may use, PyTorch's threads, and the instruction set PyTorch's kernels use."""
    return {
        "model": _cpu_model(),
        "architecture": platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "flags": _cpu_flags(),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith(("model name", "Model", "Processor")):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "unknown"


def _cpu_flags() -> list[str]:
    """Those of the vector extensions that kernels care about."""
    wanted = {
        "sse4_2",
        "avx",
        "avx2",
        "fma",
        "f16c",
        "avx512f",
        "avx512bw",
        "avx512_bf16",
        "amx_bf16",
        "asimd",
        "sve",
        "bf16",
    }
    return sorted(wanted & (processor.flags() or frozenset()))


def gpus() -> list[dict[str, object]]:
    """Each CUDA or ROCm device: name, compute capability, memory in GiB."""
    try:
        found = []
        for i in range(torch.cuda.device_count()):
            p = torch.cuda.get_device_properties(i)
            found.append(
                {"name": p.name, "capability": f"{p.major}.{p.minor}", "memory_gib": round(p.total_memory / 2**30, 1)}
            )
        return found
    except (RuntimeError, AssertionError) as error:  # a driver that is broken or too old
        return [{"name": f"not usable: {_first_line(str(error))}", "capability": None, "memory_gib": None}]


def compilers() -> dict[str, str | None]:
    """Each build tool's version line, None for what is neither on the PATH nor in this environment."""
    return {name: _version_line(name, argument) for name, argument in COMPILERS.items()}


def _version_line(name: str, argument: str) -> str | None:
    path = shutil.which(name) or shutil.which(
        name, path=str(Path(sys.executable).parent)
    )  # of an environment not activated
    if path is None:
        return None
    try:
        done = subprocess.run(
            [path, *argument.split()], capture_output=True, encoding="utf-8", errors="replace", timeout=10, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"{path} (does not run: {error})"
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    release = [line for line in lines if "release" in line or "Version" in line]  # nvcc says it further down
    return (release or lines or [path])[0]


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[0]
