"""What this processor has, and which instruction sets of the CPU kernels it runs."""

from __future__ import annotations

import platform

# What choose.h asks the processor for, in the words of /proc/cpuinfo: at least what library.py has the kernels compiled with.
# With avx512f compilers use what avx2 stands for here too.
AVX2 = ("avx2", "fma", "f16c")
FLAGS = {"avx512": (*AVX2, "avx512f", "avx512bw", "avx512dq", "avx512vl"), "avx2": AVX2, "portable": ()}


def is_x86() -> bool:
    """Whether the kernels have instruction sets of their own for this architecture."""
    return platform.machine().lower() in ("x86_64", "amd64")


def flags(cpuinfo: str = "/proc/cpuinfo") -> frozenset[str] | None:
    """Its features in the words of Linux; None where the system does not say."""
    try:
        with open(cpuinfo) as file:
            line = next((line for line in file if line.startswith(("flags", "Features"))), None)
    except OSError:
        return None
    return None if line is None else frozenset(line.partition(":")[2].split())


def instruction_sets(cpuinfo: str = "/proc/cpuinfo") -> tuple[str, ...] | None:
    """Those that run here, the widest first; None where the system does not say."""
    if not is_x86():
        return ("portable",)
    present = flags(cpuinfo)
    return None if present is None else tuple(isa for isa, needed in FLAGS.items() if present.issuperset(needed))
