"""What every optimizer step does to a block: unscale the gradient, write state, master and parameter.

The lists of a step are params, grads, masters where there are any, then its state; per tensor it knows whether the step is
made (`kept`) and the key of its rounding stream. A step that is skipped reads and writes nothing but zeroed gradients.
"""

from __future__ import annotations

import triton
import triton.language as tl

from gradalign.kernels.columns import Tensors
from gradalign.kernels.rounding import converted, narrow, narrow_stochastically
from gradalign.kernels.sweep import read_wide


@triton.jit
def unscaled(ptr, offs, mask, grad_scale, MAXIMIZE: tl.constexpr):
    """Grad * grad_scale, negated to maximize."""
    g = read_wide(ptr, offs, mask) * grad_scale.to(tl.float32)
    return -g if MAXIMIZE else g


@triton.jit
def first_moment(m, g, w):
    """lerp(m, g, w) in torch's two forms, w = 1 - beta1."""
    return tl.where(w < 0.5, m + w * (g - m), g - (g - m) * (1 - w))


@triton.jit
def second_moment(v, g, beta2, w):
    """Beta2 v + (w g) g, w = 1 - beta2."""
    return v * beta2 + g * w * g


@triton.jit
def write(ptr, offs, mask, x):
    """Float32 to storage, to nearest."""
    tl.store(ptr + offs, narrow(x, ptr.dtype.element_ty), mask=mask)


@triton.jit
def write_params(ptrs, offs, mask, start, new, key, MASTER: tl.constexpr, STOCHASTIC: tl.constexpr):
    """The master where there is one, and the parameter, rounded to nearest or stochastically."""
    if MASTER:
        write(ptrs[2], offs, mask, new)
    if STOCHASTIC:
        rounded = narrow_stochastically(new, key.to(tl.uint32, bitcast=True), start + offs)
        tl.store(ptrs[0] + offs, converted(rounded, ptrs[0].dtype.element_ty), mask=mask)
    else:
        write(ptrs[0], offs, mask, new)


@triton.jit
def clear(ptr, offs, mask):
    """0."""
    tl.store(ptr + offs, tl.zeros(offs.shape, ptr.dtype.element_ty), mask=mask)


def step_lists(
    params: Tensors, grads: Tensors, masters: Tensors, *states: Tensors, zero_grads: bool
) -> tuple[tuple[Tensors, ...], tuple[int, ...]]:
    """The lists of a step, and which it writes, params last."""
    lists = (params, grads, *([masters] if masters else []), *states)
    return lists, (*range(2, len(lists)), *([1] if zero_grads else []), 0)
