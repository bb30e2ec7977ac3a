"""[x.x, x.y, y.y] over all tensors."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from gradalign.backends.signatures import Tensors
from gradalign.kernels.run import Sweep, run
from gradalign.kernels.sweep import read_wide, row_sums


@triton.jit
def norm_dot_block(ptrs, at, scalars, sums, options: tl.constexpr):
    """x.x, and where there is a second list x.y and y.y."""
    x = read_wide(ptrs[0], at)
    if len(ptrs) == 1:
        return (sums[0] + row_sums(x * x),)
    else:
        y = read_wide(ptrs[1], at)
        return sums[0] + row_sums(x * x), sums[1] + row_sums(x * y), sums[2] + row_sums(y * y)


def norm_dot(xs: Tensors, ys: Tensors | None = None) -> Tensor:
    """[x.x, x.y, y.y] over all tensors; without ys the last two are 0."""
    lists = (xs,) if ys is None else (xs, ys)
    return run(Sweep(norm_dot_block, num_sums=1 if ys is None else 3, num_results=3), lists)
