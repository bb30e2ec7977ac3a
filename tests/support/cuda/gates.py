"""What the machine code of a kernel must look like."""

from __future__ import annotations

from dataclasses import dataclass

from support.cuda.sass import Kernel

MAX_REGISTERS = 64  # four blocks of 256 threads on a multiprocessor
MAX_REGISTERS_ANY = (
    80  # three; of the kernels for rare dtypes and strides, which are bound by their scalar accesses anyway
)
LEAST_IN_FLIGHT = 4  # vectors: 64 bytes a thread, 64 KB on a multiprocessor that holds 1024 threads

ITEMSIZES = {"float": 4, "bf16": 2, "fp16": 2, "None": 0}


@dataclass(frozen=True)
class Traffic:
    """Which lists a kernel loads and stores, by place; a master (last list) takes the parameter's place in the loads."""

    loads: tuple[int, ...]
    stores: tuple[int, ...]
    cleared: int | None = None
    master: int | None = None


# DESIGN's table of reads and writes.
TRAFFIC = {
    "NormDot<float>": Traffic((0, 1), ()),
    "Perturb<float, false>": Traffic((0, 2, 3), (0, 1)),
    "Perturb<float, true>": Traffic((1, 2, 3), (0,)),
    "Restore<float>": Traffic((1,), (0,)),
    "Swap<float>": Traffic((0, 1), (0, 1)),
    "Accumulate<float>": Traffic((0, 1), (0,)),
    "Combine<float>": Traffic((1, 2), (0,)),
    "AdamWStep<float>": Traffic((0, 1, 2, 3, 4, 5), (0, 2, 3, 4, 5), cleared=1, master=5),
    "SgdStep<float>": Traffic((0, 1, 2, 3), (0, 2, 3), cleared=1, master=3),
    "LambMoments<float>": Traffic((0, 1, 2, 3, 4), (2, 3), cleared=1, master=4),
    "LambUpdate<float>": Traffic((0, 2, 3, 4), (0, 4), master=4),
}


def faults(kernel: Kernel) -> list[str]:
    """What is wrong with a kernel; nothing for one that passes."""
    found = []
    most = MAX_REGISTERS_ANY if kernel.name == "sweep_any" else MAX_REGISTERS
    if kernel.registers > most:
        found.append(f"{kernel.registers} registers, more than {most}")
    spilled = kernel.count("LDL") + kernel.count("STL")
    if kernel.stack or spilled:
        found.append(f"a stack of {kernel.stack} bytes, {spilled} accesses to it")
    if kernel.name == "sweep":
        found += _access_faults(kernel)
    return [f"{kernel.label}: {fault}" for fault in found]


def _access_faults(kernel: Kernel) -> list[str]:
    """The sweep's loops are one over tiles of U vectors, one over single vectors, two over single elements."""
    traffic = TRAFFIC[kernel.op]
    sizes = [ITEMSIZES[storage] for storage in kernel.storages]
    length = 16 // min(size for size in sizes if size)
    loaded = [i for i in traffic.loads if not (i == 0 and traffic.master is not None and sizes[traffic.master])]
    loads = sum(sizes[i] for i in loaded) * length // 16
    unroll = max(1, min(4, 128 // (16 * loads)))
    loops = unroll + 1 if unroll > 1 else 1
    found = []
    if kernel.count("LDG", wide=True) != loads * loops:
        found.append(
            f"{kernel.count('LDG', wide=True)} loads of 16 bytes, expected {loads} lists' worth in {loops} vectors"
        )
    stores = sum(sizes[i] for i in traffic.stores) * length // 16 * loops
    if kernel.count("STG", wide=True) < stores:
        found.append(f"{kernel.count('STG', wide=True)} stores of 16 bytes, expected at least {stores}")
    if kernel.flight < min(LEAST_IN_FLIGHT, loads * unroll) - 1:  # the scheduler may start on the last but one
        found.append(f"{kernel.flight} loads in flight, expected {LEAST_IN_FLIGHT}")
    return found
