"""Gates on the machine code of the CUDA kernels: registers, spills, width of accesses. Needs nvcc, no GPU."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from support.cuda import sass
from support.cuda.gates import TRAFFIC, faults
from support.cuda.sass import ARCHITECTURES, Kernel, find_cuobjdump, kernels_in, restored

from gradalign.extension import UnavailableError, cache, cuda, ensure, library


@pytest.fixture(scope="module")
def nvcc():
    try:
        return cuda.find_nvcc()
    except ModuleNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def cuobjdump(nvcc):
    found = find_cuobjdump()
    if found is None:
        pytest.skip("cuobjdump is missing; install the CUDA toolkit or Triton")
    return found


@pytest.fixture(scope="module")
def binary(nvcc):
    try:
        return ensure(cuda.cuda(cuda.DEFAULT_ARCHITECTURES))
    except UnavailableError as error:
        if "switched off" in str(error):
            pytest.skip(str(error))
        raise


@pytest.fixture(scope="module")
def kernels(binary, cuobjdump):
    # Disassembling takes a while: what came out is kept beside the binary, for this version of the reader.
    kept = binary.with_name(f"sass-{hashlib.sha256(Path(sass.__file__).read_bytes()).hexdigest()[:12]}.json")
    with cache.locked(binary.parent.name):
        if not kept.is_file():
            kept.write_text(json.dumps([vars(kernel) for kernel in kernels_in(binary, cuobjdump)]))
    return [restored(values) for values in json.loads(kept.read_text())]


def test_nothing_but_the_stable_abi_is_asked_of_torch(binary):
    listed = subprocess.run(["nm", "-D", "-u", str(binary)], capture_output=True, text=True, check=True).stdout
    symbols = {line.split()[-1] for line in listed.splitlines()}
    of_torch = {name for name in symbols if "torch" in name or "c10" in name or "_ZN2at" in name}
    assert {name for name in of_torch if not name.startswith(("aoti_torch_", "torch_"))} == set()
    assert "aoti_torch_get_current_cuda_stream" in of_torch  # the one that a torch without CUDA lacks
    assert not {name for name in symbols if name.startswith("cuda")}  # cudart is inside


def test_every_op_is_there_for_every_architecture(kernels):
    counts = Counter(kernel.arch for kernel in kernels)
    assert set(counts) == set(ARCHITECTURES)
    assert len(set(counts.values())) == 1
    known = {(kernel.arch, kernel.op) for kernel in kernels if kernel.name == "sweep"}
    assert known == {(arch, op) for arch in ARCHITECTURES for op in TRAFFIC}
    rare = {kernel.op.strip() for kernel in kernels if kernel.name == "sweep_any"}
    wide = {op.replace("float", "double") for op in TRAFFIC}
    assert rare == set(TRAFFIC) | wide


def test_registers_spills_and_width_of_accesses(kernels):
    assert [fault for kernel in kernels for fault in faults(kernel)] == []


def test_data_that_is_used_once_is_streamed(kernels):
    # Backups and gradients of perturb_ pass the caches by (evict first), the parameters stay for the next forward pass.
    (perturb,) = (k for k in kernels if k.label == "sm_90 sweep<Perturb<float, false>, float, float, float, None>")
    wide = {access: n for access, n in perturb.accesses.items() if access.endswith(".128")}
    assert wide == {"LDG.E.EF.128": 5, "LDG.E.128": 5, "STG.E.EF.128": 5, "STG.E.128": 5}


SCALAR = """
#include "restore.cu"

namespace gradalign::cuda {
// The same loop with an element a thread and access instead of 16 bytes.
__global__ void __launch_bounds__(kThreads, 4) narrow(const __grid_constant__ Table<2> table) {
  for (int c = blockIdx.x; c < table.num_chunks(); c += gridDim.x) {
    const Chunk chunk = chunk_at(table, c);
    char* data[2] = {table.data[0][chunk.entry], table.data[1][chunk.entry]};
    sweep_rest<Restore<float>, 1, float, float>(Restore<float>(NoSettings{}), data, chunk.begin, 0, chunk.length, nullptr);
  }
}
}  // namespace gradalign::cuda
"""

SPILLING = """
namespace gradalign::cuda {
__global__ void __launch_bounds__(256, 4) spills(float* out, int n) {
  float held[96];
  for (int i = 0; i < 96; ++i) held[i] = out[i * n];
  for (int i = 0; i < 96; ++i) out[held[i] > 0 ? i : n] = held[95 - i] * held[(i * n) % 96];
}
}  // namespace gradalign::cuda
"""


def compiled(nvcc: str, cuobjdump: str, folder: Path, text: str) -> list[Kernel]:
    source, binary = folder / "variant.cu", folder / "variant.o"
    source.write_text(text)
    include = ("-I", str(library.sources() / "cuda"))
    subprocess.run(
        [nvcc, *cuda.FLAGS, *include, "-arch=sm_90", "-c", str(source), "-o", str(binary)],
        check=True,
        capture_output=True,
    )
    return kernels_in(binary, cuobjdump)


def test_a_scalar_variant_is_caught(nvcc, cuobjdump, tmp_path):
    (narrow,) = (k for k in compiled(nvcc, cuobjdump, tmp_path, SCALAR) if k.name == "narrow")
    narrow.name, narrow.op, narrow.storages = "sweep", "Restore<float>", ("float", "float")
    found = " ".join(faults(narrow))
    assert "0 loads of 16 bytes, expected 1 lists' worth in 5 vectors" in found
    assert "0 stores of 16 bytes, expected at least 5" in found
    assert "0 loads in flight, expected 4" in found


def test_a_spilling_variant_is_caught(nvcc, cuobjdump, tmp_path):
    (spills,) = compiled(nvcc, cuobjdump, tmp_path, SPILLING)
    assert "a stack of" in " ".join(faults(spills))
