"""What the compiler made of the kernels: registers, spills and the width of memory accesses, read from the machine code."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradalign.extension import cuda

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")

# Of an access in the machine code: is it wide, does it go past the caches' replacement order.
_ACCESS = re.compile(r"\b(LDG|STG|LDL|STL)\.?([A-Z0-9_.]*)")
_ENTRY = re.compile(r"\s+Function : (\S+)")
_RESOURCES = re.compile(r" Function (\S+):\n\s+REG:(\d+) STACK:(\d+)")
_FUNCTION = re.compile(r"(?:void )?gradalign::cuda::(?:\(anonymous namespace\)::)?(\w+)(?:<(.*)>)?\(")


@dataclass
class Kernel:
    """One kernel for one architecture.

    Attributes:
        name: the function, `sweep`, `sweep_any` or one of the small ones.
        op: the op it runs, as in `Perturb`, with its own template arguments after the type of the arithmetic.
        storages: the types of the lists, where the compiler knows them.
        flight: the largest number of 16-byte loads that no arithmetic and no store interrupts.
    """

    arch: str
    name: str
    op: str
    storages: tuple[str, ...]
    registers: int = 0
    stack: int = 0
    accesses: Counter[str] = field(default_factory=Counter)
    flight: int = 0

    @property
    def label(self) -> str:
        return f"{self.arch} {self.name}<{self.op}, {', '.join(self.storages)}>"

    def count(self, kind: str, wide: bool | None = None) -> int:
        """Accesses of a kind (LDG, STG, LDL, STL), all of them or those that are (not) 16 bytes."""
        return sum(
            n
            for access, n in self.accesses.items()
            if access.startswith(kind) and (wide is None or access.endswith(".128") == wide)
        )


def restored(values: dict[str, Any]) -> Kernel:
    """A kernel from its `vars` that JSON kept."""
    own = {"storages": tuple(values["storages"]), "accesses": Counter(values["accesses"])}
    return Kernel(**{**values, **own})


def find_cuobjdump() -> str | None:
    """From the toolkit, else from Triton's wheel."""
    beside = [str(Path(cuda.find_nvcc()).parent / "cuobjdump"), "/usr/local/cuda/bin/cuobjdump"]
    spec = importlib.util.find_spec("triton")
    if spec is not None and spec.origin is not None:
        beside.append(str(Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"))
    return next(filter(None, map(shutil.which, ["cuobjdump", *beside])), None)


def kernels_in(binary: Path, cuobjdump: str) -> list[Kernel]:
    """Every kernel of a binary for every architecture in it."""
    found: dict[tuple[str, str], Kernel] = {}
    arch = ""
    sections = re.split(r"\narch = (sm_\d+)\n", _run(cuobjdump, "-res-usage", str(binary)))
    for arch, text in zip(sections[1::2], sections[2::2], strict=True):
        for mangled, registers, stack in _RESOURCES.findall(text):
            found[arch, mangled] = Kernel(arch, "", "", (), int(registers), int(stack))
    for arch in sorted({arch for arch, _ in found}):
        _read_accesses(arch, _lines(cuobjdump, "-sass", "-arch", arch, str(binary)), found)
    _name(found)
    return [kernel for kernel in found.values() if kernel.name]


def _read_accesses(arch: str, lines: Iterator[str], found: dict[tuple[str, str], Kernel]) -> None:
    kernel, run = None, 0
    for line in lines:
        entry = _ENTRY.match(line)
        if entry:
            kernel, run = found.get((arch, entry[1])), 0
            continue
        access = _ACCESS.search(line) if kernel is not None else None
        if kernel is None or access is None:
            run = 0 if " FADD" in line or " FMUL" in line or " FFMA" in line else run
            continue
        name = f"{access[1]}.{access[2]}"
        kernel.accesses[name] += 1
        run = run + 1 if name.startswith("LDG") and name.endswith(".128") else 0 if name.startswith("STG") else run
        kernel.flight = max(kernel.flight, run)


def _name(found: dict[tuple[str, str], Kernel]) -> None:
    mangled = sorted({name for _, name in found})
    plain = dict(zip(mangled, _run("c++filt", *mangled).splitlines(), strict=True))
    for (_, name), kernel in found.items():
        parts = _FUNCTION.match(plain[name])
        if parts is None:
            continue
        arguments = re.sub(r"gradalign::(?:cuda::)?(?:portable::)?(?:\(anonymous namespace\)::)?", "", parts[2] or "")
        op, _, storages = _top_level(arguments)
        kernel.name, kernel.op, kernel.storages = parts[1], op, tuple(storages.split(", ")) if storages else ()


def _top_level(arguments: str) -> tuple[str, str, str]:
    depth = 0
    for i, c in enumerate(arguments):
        depth += (c == "<") - (c == ">")
        if c == "," and depth == 0:
            return arguments[:i], ",", arguments[i + 2 :]
    return arguments, "", ""


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _lines(*command: str) -> Iterator[str]:
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield from process.stdout
