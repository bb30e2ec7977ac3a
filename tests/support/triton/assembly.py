"""Offline compiles of the sweep, and what their assembly says: bytes an element, width of the accesses, registers, spills."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from gradalign.kernels.launch import THREADS, compile_options
from gradalign.kernels.sums import BLOCK as SUMS
from gradalign.kernels.sums import BLOCK_EACH, sum_chunks, sum_chunks_each
from gradalign.kernels.sweep import BLOCK, CHUNK, TAIL, sweep

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
BYTES = {tl.float32: 4, tl.bfloat16: 2, tl.float16: 2}
BLOCKS = {sum_chunks: SUMS, sum_chunks_each: BLOCK_EACH}
VECTOR = 16  # bytes


class Case(NamedTuple):
    """A block and the types of what it is given: `scalars` and `per_tensor` as pointer types, the lists by dtype."""

    block: Any
    dtypes: tuple[Any, ...]
    scalars: tuple[str, ...] = ()
    per_tensor: tuple[str, ...] = ()
    num_floats: int = 0
    options: tuple[bool, ...] = ()
    num_sums: int = 0


class Assembly(NamedTuple):
    """What a compiled sweep does in a full block.

    Attributes:
        read: bytes an element in accesses of 16 bytes.
        written: likewise.
        narrow: accesses below 16 bytes that no mask guards, beyond those of addresses and scalars; None on AMD,
            where masks are not part of an instruction.
        registers: a thread.
        spilled: bytes or registers, 0 or not.
    """

    read: float
    written: float
    narrow: int | None
    registers: int
    spilled: int


def compiled(case: Case, target: str, kernel: Any = sweep) -> Assembly:
    """Compile for a target, as the launcher would on it."""
    signature = {
        "chunks": "*i64",
        "numels": "*i64",
        "first": "i32",
        "total": "i32",
        "lists": ("*i64",) * len(case.dtypes),
        "scalars": case.scalars,
        "per_tensor": case.per_tensor,
        "floats": ("fp32",) * case.num_floats,
        "partials": "*fp64",
    }
    constants = {
        "block": case.block,
        "dtypes": case.dtypes,
        "variant": case.options,
        "NUM_SUMS": case.num_sums,
        "CHUNK": CHUNK,
        "BLOCK": BLOCK,
        "TAIL": TAIL,
    }
    known = 2 + len(case.dtypes) + len(case.scalars) + len(case.per_tensor)
    return _assembly(kernel, signature, constants, target, known)


def second_stage(kernel: Any, target: str) -> Assembly:
    """The same for `sum_chunks` or `sum_chunks_each`, as `kernels.sums` launches it."""
    pointers = {"partials": "*fp64", "ranges": "*i64", "results": "*fp64"}
    block = BLOCKS[kernel]
    signature = {name: pointers.get(name, "i32") for name in kernel.arg_names if name != "BLOCK"}
    return _assembly(kernel, signature, {"BLOCK": block}, target, 0)


def _assembly(kernel: Any, signature: dict[str, Any], constants: dict[str, Any], target: str, known: int) -> Assembly:
    gpu = TARGETS[target]
    source = ASTSource(kernel, signature | dict.fromkeys(constants, "constexpr"), constants, {})
    binary = triton.compile(source, target=gpu, options=compile_options(gpu))
    if gpu.backend == "hip":
        return _amd(binary.asm["amdgcn"])
    return _nvidia(binary.asm["ptx"], binary.asm["cubin"], known)


def _per_element(num_accesses: int) -> float:
    return num_accesses * VECTOR * THREADS / BLOCK


def _nvidia(ptx: str, cubin: bytes, num_known_loads: int) -> Assembly:
    accesses = re.findall(r"^\s*(@!?%p\d+)?\s*(ld|st)\.global(?:\.\w+)*?(\.v\d)?\.[bfsu](\d+)\s", ptx, re.MULTILINE)
    widths: dict[str, list[int]] = {"ld": [], "st": []}
    for predicate, kind, vector, bits in accesses:
        if not predicate:
            widths[kind].append(int(vector[2:] or 1) * int(bits) // 8)
    narrow = sum(w != VECTOR for ws in widths.values() for w in ws) - num_known_loads
    usage = _resource_usage(cubin)
    return Assembly(
        _per_element(widths["ld"].count(VECTOR)),
        _per_element(widths["st"].count(VECTOR)),
        narrow,
        usage["REG"],
        usage["STACK"] + usage["LOCAL"],
    )


def _resource_usage(cubin: bytes) -> dict[str, int]:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}


def _amd(text: str) -> Assembly:
    def count(pattern: str) -> int:
        return len(re.findall(rf"^\s+(?:global|buffer|flat)_{pattern}\b", text, re.MULTILINE))

    def number(name: str) -> int:
        return sum(map(int, re.findall(rf"^\s*\.{name}:\s+(\d+)", text, re.MULTILINE)))

    return Assembly(
        _per_element(count("load_dwordx4")),
        _per_element(count("store_dwordx4")),
        None,
        number("vgpr_count"),
        number("vgpr_spill_count") + number("sgpr_spill_count") + number("private_segment_fixed_size"),
    )


def element_bytes(dtypes: Sequence[Any]) -> int:
    """Bytes of one element of every list."""
    return sum(BYTES[d] for d in dtypes)
