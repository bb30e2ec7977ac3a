"""backup <- theta; theta <- theta + d, d = scale x + scale_y y."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from gradalign.backends.signatures import Tensors
from gradalign.kernels.rounding import narrow, widen
from gradalign.kernels.run import Sweep, run
from gradalign.kernels.sweep import masked, read, read_wide, row_sums, scaled, write


@triton.jit
def perturb_block(ptrs, at, scalars, sums, options: tl.constexpr):
    """delta.d, d.d, delta.delta; ptrs are params, backups, xs and perhaps ys."""
    FROM_BACKUPS: tl.constexpr = options[0]
    d = scaled(read_wide(ptrs[2], at), scalars[0])
    if len(ptrs) == 4:
        d += scaled(read_wide(ptrs[3], at), scalars[1])
    if FROM_BACKUPS:
        base = read_wide(ptrs[1], at)
        p = narrow(base, ptrs[0].dtype.element_ty)
    else:
        p = read(ptrs[0], at)
        base = widen(p)
    moved = narrow(base + d, p.dtype)
    write(ptrs[0], at, moved)
    d = masked(d, at)  # scale x is NaN where x is 0 and the scale inf
    delta = masked(widen(moved) - widen(p), at)
    sums = sums[0] + row_sums(delta * d), sums[1] + row_sums(d * d), sums[2] + row_sums(delta * delta)
    if not FROM_BACKUPS:
        write(ptrs[1], at, p)
    return sums


def perturb_(
    params: Tensors,
    backups: Tensors,
    xs: Tensors,
    scale: Tensor,
    ys: Tensors | None = None,
    scale_y: Tensor | None = None,
    from_backups: bool = False,
) -> Tensor:
    """backup <- theta; theta <- theta + d, d = scale x + scale_y y; returns [delta.d, d.d, delta.delta]."""
    lists: tuple[Tensors, ...] = (params, backups, xs)
    scalars: tuple[Tensor, ...] = (scale,)
    if ys is not None and scale_y is not None:
        lists, scalars = (*lists, ys), (scale, scale_y)
    written = (0,) if from_backups else (1, 0)
    work = Sweep(perturb_block, written, scalars, options=(from_backups,), num_sums=3, num_results=3)
    return run(work, lists)
