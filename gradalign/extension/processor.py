"""Which instruction sets of the CPU kernels this processor has."""

from __future__ import annotations

import platform

# What choose.h asks the processor for, in the words of /proc/cpuinfo.
FLAGS = {"avx512": ("avx512f", "avx512bw", "avx512dq", "avx512vl"), "avx2": ("avx2", "fma"), "portable": ()}


def instruction_sets(cpuinfo: str = "/proc/cpuinfo") -> tuple[str, ...] | None:
    """Those that run here, the widest first; None where the system does not say."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return ("portable",)
    try:
        with open(cpuinfo) as file:
            line = next((line for line in file if line.startswith("flags")), None)
    except OSError:
        return None
    if line is None:
        return None
    present = set(line.split())
    return tuple(isa for isa, flags in FLAGS.items() if present.issuperset(flags))
