"""Gates on the assembly of every op, dtype and target: bytes an element, 16-byte accesses, registers, spills."""

from __future__ import annotations

import os
import runpy
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import triton
import triton.language as tl
from support.triton.assembly import BLOCKS, TARGETS, Assembly, Case, compiled, element_bytes, second_stage
from support.triton.cases import ROWS, Row, compiled_row, dtype_names

from gradalign.kernels.sweep import read_wide

REGISTERS = 64
IMPORT_PATH = Path(__file__).parents[2] / "import_path.py"  # makes `support` importable in a spawned process


@pytest.fixture(scope="session")
def assemblies() -> dict[tuple[int, str], Assembly]:
    """Of all rows and targets, compiled by as many processes as there are cores."""
    places = [(row, target) for row in range(len(ROWS)) for target in TARGETS]
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), runpy.run_path, (str(IMPORT_PATH),)) as pool:
        return dict(zip(places, pool.map(compiled_row, places, chunksize=8), strict=True))


def expected(row: Row) -> tuple[int, int]:
    dtypes = row.case.dtypes
    return element_bytes([dtypes[k] for k in row.read]), element_bytes([dtypes[k] for k in row.written])


def gate(row: Row, assembly: Assembly) -> list[str]:
    """What is wrong with it."""
    wrong = []
    if (assembly.read, assembly.written) != expected(row):
        wrong.append(f"bytes an element in 16-byte accesses: {assembly.read}, {assembly.written} for {expected(row)}")
    if assembly.narrow is not None and assembly.narrow > 0:
        wrong.append(f"{assembly.narrow} accesses of fewer than 16 bytes in a full block")
    if assembly.registers > REGISTERS:
        wrong.append(f"{assembly.registers} registers")
    if assembly.spilled:
        wrong.append(f"{assembly.spilled} spilled")
    return wrong


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("index", range(len(ROWS)), ids=[f"{r.name}-{dtype_names(r.case.dtypes)}" for r in ROWS])
def test_assembly(assemblies: dict[tuple[int, str], Assembly], index: int, target: str) -> None:
    assert gate(ROWS[index], assemblies[index, target]) == []


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kernel", BLOCKS, ids=lambda kernel: kernel.__name__)
def test_the_second_stage_of_the_sums_keeps_to_its_registers(kernel: Any, target: str) -> None:
    assembly = second_stage(kernel, target)
    assert assembly.registers <= REGISTERS
    assert assembly.spilled == 0


@triton.jit
def scalar_norm_block(ptrs, at, scalars, sums, options: tl.constexpr):
    """The norm, of elements that the compiler cannot know to be neighbours."""
    offset = (at[1] * 5) % 1024
    x = tl.load(ptrs[0] + offset).to(tl.float32)
    return (sums[0] + tl.sum(x * x, axis=1),)


@triton.jit
def wasteful_norm_block(ptrs, at, scalars, sums, options: tl.constexpr):
    """The norm, and a store that nobody asked for."""
    x = read_wide(ptrs[0], at)
    tl.store(ptrs[0] + at[1], x + 1)
    return (sums[0] + tl.sum(x * x, axis=1),)


@pytest.mark.parametrize("target", TARGETS)
def test_scalar_loads_are_caught(target: str) -> None:
    row = Row("scalar", Case(scalar_norm_block, (tl.float32,), num_sums=1), (0,), ())
    wrong = " ".join(gate(row, compiled(row.case, target)))
    assert "bytes an element in 16-byte accesses: 0.0, 0.0 for (4, 0)" in wrong
    if target != "gfx942":
        # 8 in a full block, and one in a masked block, which it does not mask.
        assert "9 accesses of fewer than 16 bytes" in wrong


def test_superfluous_stores_are_caught() -> None:
    row = Row("wasteful", Case(wasteful_norm_block, (tl.float32,), num_sums=1), (0,), ())
    assert "4.0, 4.0 for (4, 0)" in " ".join(gate(row, compiled(row.case, "sm_90")))
