"""Runs the CPU kernels under a sanitizer: `python tests/support/sanitizer.py address|thread [ISA ...]`.

`address` is AddressSanitizer with UndefinedBehaviorSanitizer, `thread` is ThreadSanitizer. The kernels are compiled for the
instruction sets named, or for all of them, with the flags that they are shipped with, and run without torch: its own threads
and allocator would hide what is looked for.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gradalign.extension import compiler, library

SANITIZERS = {"address": "-fsanitize=address,undefined -fno-sanitize-recover=all", "thread": "-fsanitize=thread"}
DRIVER = Path(__file__).parents[1] / "sanitizers" / "kernels.cpp"


def run(sanitizer: str, sets: list[str]) -> str:
    """What the driver printed; without `sets`, for all that the processor has.

    Raises:
        RuntimeError: there is no compiler, it refused, or the sanitizer complained.
    """
    found = compiler.find_compiler()
    if found is None:
        raise RuntimeError("no C++ compiler found")
    chosen = [unit for unit in library.cpu(sets or None).units if unit.source == "cpu/kernels.cpp"]
    # -g1: the lines that reports name, in two thirds of the time of -g.
    flags = [*library.COMMON, "-g1", "-O1", *SANITIZERS[sanitizer].split()]
    with tempfile.TemporaryDirectory() as folder:

        def compiled(name: str, source: Path, *more: str) -> None:
            checked([*found.command, *flags, *more, "-c", str(source), "-o", name], folder)

        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            jobs = [pool.submit(compiled, u.object, library.sources() / u.source, *u.flags) for u in chosen]
            jobs.append(pool.submit(compiled, "driver.o", DRIVER))
            for job in jobs:
                job.result()
        objects = ["driver.o", *(u.object for u in chosen)]
        checked([*found.command, *flags, "-pthread", "-o", "driver", *objects], folder)
        return run_driver(folder, sets or list(library.INSTRUCTION_SETS), named=bool(sets))


def run_driver(folder: str, sets: list[str], named: bool) -> str:
    """Runs each instruction set; one that was not asked for by name is left out where the processor lacks it."""
    printed = ""
    for isa in sets:
        try:
            printed += checked(["./driver"], folder, GRADALIGN_CPU_ISA=isa)
        except RuntimeError as error:
            if named or "GRADALIGN_CPU_ISA: expected" not in str(error):
                raise
            printed += f"{isa}: left out, this processor does not have it\n"
    return printed


def checked(command: list[str], folder: str, **environment: str) -> str:
    env = {**os.environ, **environment}
    done = subprocess.run(
        command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}")
    return done.stdout


if __name__ == "__main__":
    print(run(sys.argv[1], sys.argv[2:]), end="")
