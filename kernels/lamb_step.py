"""LAMB (You et al. 2020, arXiv:1904.00962): one sweep for the moments and the norms, one for the update."""

from __future__ import annotations

import triton
import triton.language as tl

from gradalign.backends.signatures import LAMBOptions, StepScalars, StepTensors
from gradalign.kernels.advance import Coefficients, advance_steps, double, power
from gradalign.kernels.rounding import narrow, widen
from gradalign.kernels.run import Sweep, run, run_each
from gradalign.kernels.step import clear, decaying, first_moment, second_moment, unscaled, write_params
from gradalign.kernels.sweep import masked, read_wide, row_sums, write


@triton.jit
def lamb_coefficients(t, scalars, parts):
    """1 / (1 - beta1^t), 1 / sqrt(1 - beta2^t)."""
    correction1 = 1 - power(double(parts, 0, t), t)
    correction2 = tl.sqrt(1 - power(double(parts, 1, t), t))
    return (1 / correction1).to(tl.float32), (1 / correction2).to(tl.float32)


@triton.jit
def direction(m, v, inverse1, inverse2, eps):
    """(m / bc1) / (sqrt(v) / sqrt(bc2) + eps): u but for weight_decay p, which is read after it to hold fewer registers."""
    return tl.div_rn(m * inverse1, tl.sqrt_rn(v) * inverse2 + eps)


@triton.jit
def lamb_moments_block(ptrs, at, scalars, sums, options: tl.constexpr):
    """theta.theta and u.u, u from the moments as stored; ptrs are grads, exp_avgs, exp_avg_sqs and thetas."""
    MAXIMIZE: tl.constexpr = options[0]
    ZERO: tl.constexpr = options[1]
    grad_scale, weight_decay, kept, key, inverse1, inverse2, w1, beta2, w2, eps = scalars
    pp = sums[0]
    uu = sums[1]
    if kept != 0:
        g = unscaled(ptrs[0], at, grad_scale, MAXIMIZE)
        m = narrow(first_moment(read_wide(ptrs[1], at), g, w1), ptrs[1].dtype.element_ty)
        write(ptrs[1], at, m)
        v = narrow(second_moment(read_wide(ptrs[2], at), g, beta2, w2), ptrs[2].dtype.element_ty)
        write(ptrs[2], at, v)
        adam = direction(widen(m), widen(v), inverse1, inverse2, eps)
        p = read_wide(ptrs[3], at)
        u = masked(adam + decaying(p, weight_decay) * weight_decay.to(tl.float32), at)  # 0 / 0 where eps is 0
        pp += row_sums(p * p)
        uu += row_sums(u * u)
    if ZERO:
        clear(ptrs[0], at)
    return pp, uu


@triton.jit
def lamb_update_block(ptrs, at, scalars, sums, options: tl.constexpr):
    """ptrs are params, exp_avgs, (masters,) exp_avg_sqs."""
    MASTER: tl.constexpr = options[0]
    STOCHASTIC: tl.constexpr = options[1]
    TRUST: tl.constexpr = options[2]
    lr, weight_decay, kept, key, inverse1, inverse2, pp, uu, eps = scalars
    if kept != 0:
        rate = lr.to(tl.float64)
        if TRUST:
            ratio = tl.sqrt(pp / uu)
            rate = rate * tl.where((pp > 0) & (uu > 0), ratio, 1.0)
        m = read_wide(ptrs[1], at)
        v = read_wide(ptrs[3 if MASTER else 2], at)
        adam = direction(m, v, inverse1, inverse2, eps)
        p = read_wide(ptrs[2 if MASTER else 0], at)
        u = adam + decaying(p, weight_decay) * weight_decay.to(tl.float32)
        write_params(ptrs, at, p - rate.to(tl.float32) * u, key, MASTER, STOCHASTIC)
    return sums


def lamb_step_(tensors: StepTensors, scalars: StepScalars, options: LAMBOptions) -> None:
    """Moments as in Adam; u = (m/bc1) / (sqrt(v)/sqrt(bc2) + eps) + wd p; p <- p - lr ||p||/||u|| u."""
    params, masters = tensors.params, tensors.masters
    exp_avgs, exp_avg_sqs = tensors.states
    beta1, beta2 = options.beta1, options.beta2
    coefficients = Coefficients(lamb_coefficients, 2, numbers=(beta1, beta2))
    per_tensor = advance_steps(tensors.steps, coefficients, scalars.skip, scalars.seed)
    moments = Sweep(
        lamb_moments_block,
        written=(1, 2, 0) if options.zero_grads else (1, 2),
        scalars=(scalars.grad_scale, scalars.weight_decay),
        per_tensor=per_tensor,
        floats=(1 - beta1, beta2, 1 - beta2, options.eps),
        options=(options.maximize, options.zero_grads),
        num_sums=2,
    )
    squares = run_each(moments, (tensors.grads, exp_avgs, exp_avg_sqs, masters or params))
    stochastic = scalars.seed is not None
    update = Sweep(
        lamb_update_block,
        written=(2, 0) if masters else (0,),
        scalars=(scalars.lr, scalars.weight_decay),
        per_tensor=(*per_tensor, *squares),
        floats=(options.eps,),
        options=(bool(masters), stochastic, options.trust),
        row_major=stochastic,
    )
    run(update, (params, exp_avgs, *([masters] if masters else []), exp_avg_sqs))
