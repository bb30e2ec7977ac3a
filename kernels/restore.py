"""theta <- backup."""

from __future__ import annotations

import triton
import triton.language as tl

from gradalign.backends.signatures import Tensors
from gradalign.kernels.run import Sweep, run
from gradalign.kernels.sweep import read, write


@triton.jit
def restore_block(ptrs, at, scalars, sums, options: tl.constexpr):
    """ptrs are params and backups."""
    backup = read(ptrs[1], at)
    write(ptrs[0], at, backup)
    return sums


def restore_(params: Tensors, backups: Tensors) -> None:
    """theta <- backup; bit for bit where the dtypes agree, else one rounding."""
    run(Sweep(restore_block, written=(0,)), (params, backups))
