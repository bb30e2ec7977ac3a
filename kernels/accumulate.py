"""acc <- acc + scale g."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from gradalign.backends.signatures import Tensors
from gradalign.kernels.run import Sweep, run
from gradalign.kernels.sweep import read_wide, row_sums, scaled, write


@triton.jit
def accumulate_block(ptrs, at, scalars, sums, options: tl.constexpr):
    """g.g and g.acc; ptrs are accs and grads."""
    acc = read_wide(ptrs[0], at)
    g = read_wide(ptrs[1], at)
    write(ptrs[0], at, acc + scaled(g, scalars[0]))
    return sums[0] + row_sums(g * g), sums[1] + row_sums(g * acc)


def accumulate_(accs: Tensors, grads: Tensors, scale: Tensor) -> Tensor:
    """acc <- acc + scale g (scale 0 selects, as in `perturb_`); returns [g.g, g.acc] with acc as it was before."""
    work = Sweep(accumulate_block, written=(0,), scalars=(scale,), num_sums=2, num_results=2)
    return run(work, (accs, grads))
