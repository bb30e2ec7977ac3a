"""AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101), and Adam with `decoupled=False`."""

from __future__ import annotations

import triton
import triton.language as tl

from gradalign.backends.signatures import AdamWOptions, StepScalars, StepTensors
from gradalign.kernels.advance import Coefficients, advance_steps, double, power
from gradalign.kernels.run import Sweep, run
from gradalign.kernels.step import clear, decaying, first_moment, second_moment, step_lists, unscaled, write_params
from gradalign.kernels.sweep import read_wide, write


@triton.jit
def adamw_coefficients(t, scalars, parts):
    """lr / (1 - beta1^t), sqrt(1 - beta2^t), 1 - lr weight_decay."""
    lr = tl.zeros(t.shape, tl.float64) + tl.load(scalars[0]).to(tl.float64)
    weight_decay = tl.load(scalars[1]).to(tl.float64)
    step_size = lr / (1 - power(double(parts, 0, t), t))
    correction = tl.sqrt(1 - power(double(parts, 1, t), t))
    return step_size.to(tl.float32), correction.to(tl.float32), (1 - lr * weight_decay).to(tl.float32)


@triton.jit
def adamw_step_block(ptrs, at, scalars, sums, options: tl.constexpr):
    """ptrs are params, grads, (masters,) exp_avgs, exp_avg_sqs(, max_exp_avg_sqs)."""
    MASTER: tl.constexpr = options[0]
    STOCHASTIC: tl.constexpr = options[1]
    MAXIMIZE: tl.constexpr = options[2]
    ZERO: tl.constexpr = options[3]
    DECOUPLED: tl.constexpr = options[4]
    STATE: tl.constexpr = 3 if MASTER else 2
    grad_scale, weight_decay, kept, key, step_size, correction, shrink, w1, beta2, w2, eps = scalars
    if kept != 0:
        g = unscaled(ptrs[1], at, grad_scale, MAXIMIZE)
        if not DECOUPLED:
            p = read_wide(ptrs[2 if MASTER else 0], at)
            g = tl.fma(decaying(p, weight_decay), weight_decay.to(tl.float32), g)
        # The order in which every version of the compilers keeps all of it in 64 registers.
        v = second_moment(read_wide(ptrs[STATE + 1], at), g, beta2, w2)
        write(ptrs[STATE + 1], at, v)
        m = first_moment(read_wide(ptrs[STATE], at), g, w1)
        write(ptrs[STATE], at, m)
        if len(ptrs) > STATE + 2:
            # a NaN stays, as in torch.maximum
            v = tl.maximum(read_wide(ptrs[STATE + 2], at), v, propagate_nan=tl.PropagateNan.ALL)
            write(ptrs[STATE + 2], at, v)
        update = tl.div_rn(step_size * m, tl.div_rn(tl.sqrt_rn(v), correction) + eps)
        if DECOUPLED:
            p = read_wide(ptrs[2 if MASTER else 0], at) * shrink
        write_params(ptrs, at, p - update, key, MASTER, STOCHASTIC)
    if ZERO:
        clear(ptrs[1], at)
    return sums


def adamw_step_(tensors: StepTensors, scalars: StepScalars, options: AdamWOptions) -> None:
    """m <- lerp(m, g, 1 - beta1); v <- beta2 v + (1 - beta2) g^2; p <- p - lr/bc1 m / (sqrt(v)/sqrt(bc2) + eps)."""
    beta1, beta2 = options.beta1, options.beta2
    coefficients = Coefficients(adamw_coefficients, 3, (scalars.lr, scalars.weight_decay), (beta1, beta2))
    lists, written = step_lists(tensors, options.zero_grads)
    stochastic = scalars.seed is not None
    work = Sweep(
        adamw_step_block,
        written,
        scalars=(scalars.grad_scale, scalars.weight_decay),
        per_tensor=advance_steps(tensors.steps, coefficients, scalars.skip, scalars.seed),
        floats=(1 - beta1, beta2, 1 - beta2, options.eps),
        options=(bool(tensors.masters), stochastic, options.maximize, options.zero_grads, options.decoupled),
        row_major=stochastic,
    )
    run(work, lists)
