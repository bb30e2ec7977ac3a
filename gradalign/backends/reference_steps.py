"""The optimizer steps in plain torch: the oracle of the other backends.

What every step has in common, per element and in the wider of float32 and the storage dtypes:

    g <- grad * grad_scale, negated if `maximize`           p <- the master where there is one, else the parameter
    (p, state) <- update(p, g, state)                       rounded once at the store, from unrounded state
    param <- p rounded to nearest, or stochastically (`seed`)

The coefficients (1 - lr weight_decay, lr / (1 - beta1^t), sqrt(1 - beta2^t), ...) are computed in float64 and rounded to
the arithmetic's dtype once; `lr`, `weight_decay`, `grad_scale` and `skip` are 0-dim tensors of any dtype. t is
`steps[i] + 1`. `skip` != 0 selects the old value of everything, steps included; gradients are zeroed all the same.

Products are fused into sums (`addcmul`, `add` with alpha) where torch's fused forms are compiled that way, so that AdamW and
SGD agree with them bit for bit on a machine with fused multiply-add.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gradalign.backends.chunks import chunks, compute_dtype
from gradalign.backends.rounding import RoundingStream
from gradalign.backends.signatures import (
    AdamWOptions,
    LAMBOptions,
    SGDOptions,
    StepOptions,
    StepScalars,
    StepTensors,
)

# (p, g, *state) -> (new p, *new state), all in the arithmetic's dtype.
Update = Callable[..., tuple[Tensor, ...]]
# (t, dtype) -> the update of a tensor whose step number is t.
UpdateAt = Callable[[Tensor, torch.dtype], Update]
# (theta, m, v) -> LAMB's u.
Direction = Callable[[Tensor, Tensor, Tensor], Tensor]

TEMPORARIES = 16  # of a chunk, about, in float32


def step_(tensors: StepTensors, scalars: StepScalars, options: StepOptions) -> None:
    """One step of the optimizer that the options name; see `gradalign.ops`."""
    STEPS[options.op](tensors, scalars, options)


def adamw_step_(tensors: StepTensors, scalars: StepScalars, options: AdamWOptions) -> None:
    """m <- lerp(m, g, 1 - beta1); v <- beta2 v + (1 - beta2) g^2; p <- p - lr/bc1 m / (sqrt(v)/sqrt(bc2) + eps)."""
    lr, weight_decay = scalars.lr, scalars.weight_decay
    beta1, beta2, eps = options.beta1, options.beta2, options.eps

    def update_at(t: Tensor, dtype: torch.dtype) -> Update:
        step_size = (lr.double() / (1 - beta1**t)).to(dtype)
        correction = (1 - beta2**t).sqrt().to(dtype)
        kept = (1 - lr.double() * weight_decay.double()).to(dtype)
        decay = weight_decay.to(dtype)

        def update(p: Tensor, g: Tensor, m: Tensor, v: Tensor, *largest: Tensor) -> tuple[Tensor, ...]:
            if options.decoupled:
                p = p * kept
            else:
                g = torch.addcmul(g, _decaying(p, decay), decay)
            m, v = _moments(m, v, g, beta1, beta2)
            top = tuple(torch.maximum(a, v) for a in largest)
            denom = _root(top[0] if top else v) / correction + eps
            return p - step_size * m / denom, m, v, *top

        return update

    _one_sweep(update_at, tensors, scalars, options)


def sgd_step_(tensors: StepTensors, scalars: StepScalars, options: SGDOptions) -> None:
    """g <- g + wd p; b <- momentum b + (1 - dampening) g, at the first step b <- g; p <- p - lr (b, or g + momentum b)."""
    momentum, dampening = options.momentum, options.dampening

    def update_at(t: Tensor, dtype: torch.dtype) -> Update:
        rate, decay = scalars.lr.to(dtype), scalars.weight_decay.to(dtype)

        def update(p: Tensor, g: Tensor, *buffers: Tensor) -> tuple[Tensor, ...]:
            g = torch.addcmul(g, _decaying(p, decay), decay)
            if not buffers:
                return (torch.addcmul(p, g, rate, value=-1),)
            later = torch.add(buffers[0] * momentum, g, alpha=1 - dampening)
            buffer = torch.where(t == 1, g, later)
            direction = torch.add(g, buffer, alpha=momentum) if options.nesterov else buffer
            return torch.addcmul(p, direction, rate, value=-1), buffer

        return update

    _one_sweep(update_at, tensors, scalars, options)


def lamb_step_(tensors: StepTensors, scalars: StepScalars, options: LAMBOptions) -> None:
    """Moments as in Adam; u = (m/bc1) / (sqrt(v)/sqrt(bc2) + eps) + wd p; p <- p - lr ||p||/||u|| u.

    Two sweeps. u is computed in both from the moments as stored (rounded to their dtype), so that every backend agrees.
    """
    kept = _kept(scalars.skip)
    for i, (p, g, m, v) in enumerate(zip(tensors.params, tensors.grads, *tensors.states, strict=True)):
        theta = tensors.masters[i] if tensors.masters else p
        dtype = compute_dtype(p.dtype, g.dtype, m.dtype, v.dtype, theta.dtype)
        t = tensors.steps[i].double() + 1
        for gc, mc, vc in chunks(g, m, v, temporaries=TEMPORARIES):
            wide = _scaled(gc, scalars.grad_scale, dtype, options.maximize)
            moments = _moments(mc.to(dtype), vc.to(dtype), wide, options.beta1, options.beta2)
            for stored, new in zip((mc, vc), moments, strict=True):
                stored.copy_(_select(kept, new, stored))
            if options.zero_grads:
                gc.zero_()

        direction = _lamb_direction(t, dtype, scalars.weight_decay, options)
        ratio = _trust_ratio(theta, m, v, direction, dtype) if options.trust else t.new_ones(())
        rate = (scalars.lr.double() * ratio).to(dtype)
        stream = None if scalars.seed is None else RoundingStream(scalars.seed, i, t)
        for pc, mc, vc, ac in chunks(p, m, v, theta, temporaries=TEMPORARIES):
            old = ac.to(dtype)
            new = old - rate * direction(old, mc.to(dtype), vc.to(dtype))
            _store_params(pc, ac if tensors.masters else None, new, kept, stream)
        _advance(tensors.steps[i], kept)


STEPS: dict[str, Callable[..., None]] = {step.__name__: step for step in (adamw_step_, sgd_step_, lamb_step_)}


def _one_sweep(update_at: UpdateAt, tensors: StepTensors, scalars: StepScalars, options: StepOptions) -> None:
    """Widen, scale, update, select, store."""
    kept = _kept(scalars.skip)
    for i, (p, g) in enumerate(zip(tensors.params, tensors.grads, strict=True)):
        theta = tensors.masters[i] if tensors.masters else p
        state = [ts[i] for ts in tensors.states if ts]
        dtype = compute_dtype(*(x.dtype for x in (p, g, theta, *state)))
        t = tensors.steps[i].double() + 1
        update = update_at(t, dtype)
        stream = None if scalars.seed is None else RoundingStream(scalars.seed, i, t)
        for pc, gc, ac, *sc in chunks(p, g, theta, *state, temporaries=TEMPORARIES):
            wide = _scaled(gc, scalars.grad_scale, dtype, options.maximize)
            new, *new_state = update(ac.to(dtype), wide, *(s.to(dtype) for s in sc))
            for stored, value in zip(sc, new_state, strict=True):
                stored.copy_(_select(kept, value, stored))
            _store_params(pc, ac if tensors.masters else None, new, kept, stream)
            if options.zero_grads:
                gc.zero_()
        _advance(tensors.steps[i], kept)


def _scaled(g: Tensor, grad_scale: Tensor, dtype: torch.dtype, maximize: bool) -> Tensor:
    g = g.to(dtype) * grad_scale.to(dtype)
    return -g if maximize else g


def _moments(m: Tensor, v: Tensor, g: Tensor, beta1: float, beta2: float) -> tuple[Tensor, Tensor]:
    # torch's order of operations: lerp, which is exact for beta1 = 0, then ((1 - beta2) g) g, fused into the sum.
    return torch.lerp(m, g, 1 - beta1), torch.addcmul(v * beta2, g * (1 - beta2), g)


def _decaying(p: Tensor, decay: Tensor) -> Tensor:
    # Selects instead of multiplying: 0 x inf is NaN, and a decay of 0 must leave the gradient alone.
    return torch.where(decay == 0, 0.0, p)


def _root(v: Tensor) -> Tensor:
    # Rounded correctly: torch's float32 root on the CPU is a vector library's, which may be an ulp off.
    return v.double().sqrt().to(v.dtype)


def _lamb_direction(t: Tensor, dtype: torch.dtype, weight_decay: Tensor, options: LAMBOptions) -> Direction:
    correction1, correction2 = (1 - options.beta1**t).to(dtype), (1 - options.beta2**t).sqrt().to(dtype)
    decay = weight_decay.to(dtype)
    return lambda p, m, v: (m / correction1) / (_root(v) / correction2 + options.eps) + _decaying(p, decay) * decay


def _trust_ratio(theta: Tensor, m: Tensor, v: Tensor, direction: Direction, dtype: torch.dtype) -> Tensor:
    """||theta|| / ||u||, 1 where either is 0."""
    squares = torch.zeros(2, dtype=torch.float64, device=theta.device)
    for ac, mc, vc in chunks(theta, m, v, temporaries=TEMPORARIES):
        wide = ac.to(dtype)
        update = direction(wide, mc.to(dtype), vc.to(dtype))
        squares += torch.stack([torch.dot(x.reshape(-1), x.reshape(-1)).double() for x in (wide, update)])
    return torch.where((squares > 0).all(), (squares[0] / squares[1]).sqrt(), 1.0)


def _kept(skip: Tensor | None) -> Tensor | None:
    """0-dim bool: whether the new values are kept; None where there is no question."""
    return None if skip is None else skip.reshape(()) == 0


def _select(kept: Tensor | None, new: Tensor, old: Tensor) -> Tensor:
    # Selects instead of multiplying: a skipped step is one whose gradients are inf or NaN.
    return new if kept is None else torch.where(kept, new.to(old.dtype), old)


def _store_params(
    param: Tensor, master: Tensor | None, new: Tensor, kept: Tensor | None, stream: RoundingStream | None
) -> None:
    """master <- new; param <- new, rounded."""
    rounded = new.to(param.dtype) if stream is None else stream.round(new)
    if master is not None:
        master.copy_(_select(kept, new, master))
    param.copy_(_select(kept, rounded, param))


def _advance(step: Tensor, kept: Tensor | None) -> None:
    step.add_(1 if kept is None else kept)
