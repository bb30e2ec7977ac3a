"""out <- a x + b y."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from gradalign.backends.signatures import Tensors
from gradalign.kernels.rounding import narrow, widen
from gradalign.kernels.run import Sweep, run
from gradalign.kernels.sweep import masked, read_wide, row_sums, write


@triton.jit
def combine_block(ptrs, at, scalars, sums, options: tl.constexpr):
    """out.out as stored; ptrs are outs, xs and ys."""
    x = read_wide(ptrs[1], at)
    y = read_wide(ptrs[2], at)
    out = narrow(x * scalars[0].to(tl.float32) + y * scalars[1].to(tl.float32), ptrs[0].dtype.element_ty)
    write(ptrs[0], at, out)
    stored = masked(widen(out), at)  # a x is NaN where x is 0 and a inf
    return (sums[0] + row_sums(stored * stored),)


def combine_(outs: Tensors, xs: Tensors, ys: Tensors, a: Tensor, b: Tensor) -> Tensor:
    """out <- a x + b y (an out may be its x or y); returns [out.out]."""
    work = Sweep(combine_block, written=(0,), scalars=(a, b), num_sums=1, num_results=1)
    return run(work, (outs, xs, ys))
