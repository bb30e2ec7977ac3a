"""SGD with momentum, in torch's form (Sutskever et al. 2013, with the learning rate outside the buffer)."""

from __future__ import annotations

import triton
import triton.language as tl

from gradalign.backends.signatures import SGDOptions, StepScalars, StepTensors
from gradalign.kernels.advance import Coefficients, advance_steps
from gradalign.kernels.run import Sweep, run
from gradalign.kernels.step import clear, decaying, step_lists, unscaled, write_params
from gradalign.kernels.sweep import read_wide, write


@triton.jit
def sgd_coefficients(t, scalars, parts):
    """Whether it is the first step."""
    return ((t == 1).to(tl.float32),)


@triton.jit
def sgd_step_block(ptrs, at, scalars, sums, options: tl.constexpr):
    """ptrs are params, grads, (masters,) (momentum_buffers)."""
    MASTER: tl.constexpr = options[0]
    STOCHASTIC: tl.constexpr = options[1]
    MAXIMIZE: tl.constexpr = options[2]
    ZERO: tl.constexpr = options[3]
    NESTEROV: tl.constexpr = options[4]
    STATE: tl.constexpr = 3 if MASTER else 2
    grad_scale, lr, weight_decay, kept, key, first, momentum, undamped = scalars
    if kept != 0:
        p = read_wide(ptrs[2 if MASTER else 0], at)
        g = tl.fma(decaying(p, weight_decay), weight_decay.to(tl.float32), unscaled(ptrs[1], at, grad_scale, MAXIMIZE))
        if len(ptrs) > STATE:
            later = tl.fma(g, undamped, read_wide(ptrs[STATE], at) * momentum)
            buffer = tl.where(first != 0, g, later)
            write(ptrs[STATE], at, buffer)
            g = tl.fma(buffer, momentum, g) if NESTEROV else buffer
        write_params(ptrs, at, tl.fma(-g, lr.to(tl.float32), p), key, MASTER, STOCHASTIC)
    if ZERO:
        clear(ptrs[1], at)
    return sums


def sgd_step_(tensors: StepTensors, scalars: StepScalars, options: SGDOptions) -> None:
    """g <- g + wd p; b <- momentum b + (1 - dampening) g, at the first step b <- g; p <- p - lr (b, or g + momentum b)."""
    lists, written = step_lists(tensors, options.zero_grads)
    stochastic = scalars.seed is not None
    work = Sweep(
        sgd_step_block,
        written,
        scalars=(scalars.grad_scale, scalars.lr, scalars.weight_decay),
        per_tensor=advance_steps(tensors.steps, Coefficients(sgd_coefficients, 1), scalars.skip, scalars.seed),
        floats=(options.momentum, 1 - options.dampening),
        options=(bool(tensors.masters), stochastic, options.maximize, options.zero_grads, options.nesterov),
        row_major=stochastic,
    )
    run(work, lists)
