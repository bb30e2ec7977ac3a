"""What every optimizer step does to a block: unscale the gradient, write state, master and parameter.

The lists of a step are params, grads, masters where there are any, then its state; per tensor it is given whether the step is
made (`kept`) and the key of the rounding stream. A step that is skipped reads and writes nothing but zeroed gradients.
Products are fused into sums where torch's fused optimizers are compiled that way, as in the reference.
"""

from __future__ import annotations

import triton
import triton.language as tl

from gradalign.backends.signatures import StepTensors, Tensors
from gradalign.kernels.rounding import narrow_stochastically
from gradalign.kernels.sweep import elements, read_wide, write


@triton.jit
def unscaled(ptr, at, grad_scale, MAXIMIZE: tl.constexpr):
    """Grad * grad_scale, negated to maximize."""
    g = read_wide(ptr, at) * grad_scale.to(tl.float32)
    return -g if MAXIMIZE else g


@triton.jit
def decaying(p, weight_decay):
    """p, but 0 without decay. Selects instead of multiplying: 0 x inf is NaN, and no decay must leave the gradient alone."""
    return tl.where(weight_decay == 0, 0.0, p)


@triton.jit
def first_moment(m, g, w):
    """lerp(m, g, w) in torch's two forms, w = 1 - beta1."""
    return tl.where(w < 0.5, tl.fma(g - m, w, m), tl.fma(m - g, 1 - w, g))


@triton.jit
def second_moment(v, g, beta2, w):
    """Beta2 v + (w g) g, w = 1 - beta2."""
    return tl.fma(g * w, g, v * beta2)


@triton.jit
def write_params(ptrs, at, new, key, MASTER: tl.constexpr, STOCHASTIC: tl.constexpr):
    """The master where there is one, and the parameter, rounded to nearest or stochastically."""
    if MASTER:
        write(ptrs[2], at, new)
    if STOCHASTIC:
        write(ptrs[0], at, narrow_stochastically(new, key.to(tl.uint32, bitcast=True), elements(at)))
    else:
        write(ptrs[0], at, new)


@triton.jit
def clear(ptr, at):
    """0."""
    write(ptr, at, tl.zeros(at[1].shape, ptr.dtype.element_ty))


def step_lists(tensors: StepTensors, zero_grads: bool) -> tuple[tuple[Tensors, ...], tuple[int, ...]]:
    """The lists that are not empty, and the places of those that the step writes, params last."""
    masters = [tensors.masters] if tensors.masters else []
    lists = (tensors.params, tensors.grads, *masters, *filter(len, tensors.states))
    return lists, (*range(2, len(lists)), *([1] if zero_grads else []), 0)
