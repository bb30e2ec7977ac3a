"""acc <- acc + scale g."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from gradalign.kernels.columns import Tensors
from gradalign.kernels.run import Sweep, run
from gradalign.kernels.sweep import lanes, read_wide, write


@triton.jit
def accumulate_block(ptrs, at, scalars, sums, options: tl.constexpr):
    """g.g and g.acc; ptrs are accs and grads."""
    acc = read_wide(ptrs[0], at)
    g = read_wide(ptrs[1], at)
    added = tl.where(scalars[0] == 0, 0.0, g * scalars[0].to(tl.float32))  # selects, as perturb_ does
    write(ptrs[0], at, acc + added)
    return sums[0] + lanes(g * g), sums[1] + lanes(g * acc)


def accumulate_(accs: Tensors, grads: Tensors, scale: Tensor) -> Tensor:
    """acc <- acc + scale g; returns [g.g, g.acc] with acc as it was before."""
    work = Sweep(accumulate_block, written=(0,), scalars=(scale,), num_sums=2, num_results=2)
    return run(work, (accs, grads))
