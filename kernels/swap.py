"""Exchange params and backups."""

from __future__ import annotations

import triton
import triton.language as tl

from gradalign.kernels.columns import Tensors
from gradalign.kernels.rounding import converted
from gradalign.kernels.run import Sweep, run
from gradalign.kernels.sweep import read


@triton.jit
def swap_block(ptrs, offs, mask, start, scalars, sums, options: tl.constexpr):
    """ptrs are params and backups."""
    p = read(ptrs[0], offs, mask)
    backup = read(ptrs[1], offs, mask)
    tl.store(ptrs[1] + offs, converted(p, backup.dtype), mask=mask)
    tl.store(ptrs[0] + offs, converted(backup, p.dtype), mask=mask)
    return sums


def swap_(params: Tensors, backups: Tensors) -> None:
    """Exchange, bit for bit where the dtypes agree."""
    run(Sweep(swap_block, written=(1, 0)), (params, backups))
