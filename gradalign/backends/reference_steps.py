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

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gradalign.backends.chunks import chunks, compute_dtype
from gradalign.backends.rounding import RoundingStream

Tensors = Sequence[Tensor]
# (p, g, *state) -> (new p, *new state), all in the arithmetic's dtype; a factory of them per tensor gets (t, dtype).
Update = Callable[..., tuple[Tensor, ...]]

TEMPORARIES = 16  # of a chunk, about, in float32


def adamw_step_(
    params: Tensors,
    grads: Tensors,
    exp_avgs: Tensors,
    exp_avg_sqs: Tensors,
    max_exp_avg_sqs: Tensors,
    masters: Tensors,
    steps: Tensors,
    grad_scale: Tensor,
    lr: Tensor,
    weight_decay: Tensor,
    skip: Tensor | None = None,
    seed: Tensor | None = None,
    *,
    beta1: float,
    beta2: float,
    eps: float,
    decoupled: bool = True,
    maximize: bool = False,
    zero_grads: bool = False,
) -> None:
    """m <- lerp(m, g, 1 - beta1); v <- beta2 v + (1 - beta2) g^2; p <- p - lr/bc1 m / (sqrt(v)/sqrt(bc2) + eps)."""

    def update_at(t: Tensor, dtype: torch.dtype) -> Update:
        step_size = (lr.double() / (1 - beta1**t)).to(dtype)
        correction = (1 - beta2**t).sqrt().to(dtype)
        kept = (1 - lr.double() * weight_decay.double()).to(dtype)
        decay = weight_decay.to(dtype)

        def update(p: Tensor, g: Tensor, m: Tensor, v: Tensor, *largest: Tensor) -> tuple[Tensor, ...]:
            if decoupled:
                p = p * kept
            else:
                g = torch.addcmul(g, p, decay)
            m, v = _moments(m, v, g, beta1, beta2)
            top = tuple(torch.maximum(a, v) for a in largest)
            denom = _root(top[0] if top else v) / correction + eps
            return p - step_size * m / denom, m, v, *top

        return update

    states = [exp_avgs, exp_avg_sqs, *([max_exp_avg_sqs] if max_exp_avg_sqs else [])]
    _step_(update_at, params, grads, states, masters, steps, grad_scale, skip, seed, maximize, zero_grads)


def sgd_step_(
    params: Tensors,
    grads: Tensors,
    momentum_buffers: Tensors,
    masters: Tensors,
    steps: Tensors,
    grad_scale: Tensor,
    lr: Tensor,
    weight_decay: Tensor,
    skip: Tensor | None = None,
    seed: Tensor | None = None,
    *,
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    zero_grads: bool = False,
) -> None:
    """g <- g + wd p; b <- momentum b + (1 - dampening) g, at the first step b <- g; p <- p - lr (b, or g + momentum b)."""

    def update_at(t: Tensor, dtype: torch.dtype) -> Update:
        rate, decay = lr.to(dtype), weight_decay.to(dtype)

        def update(p: Tensor, g: Tensor, *buffers: Tensor) -> tuple[Tensor, ...]:
            g = torch.addcmul(g, p, decay)
            if not buffers:
                return (torch.addcmul(p, g, rate, value=-1),)
            later = torch.add(buffers[0] * momentum, g, alpha=1 - dampening)
            buffer = torch.where(t == 1, g, later)
            direction = torch.add(g, buffer, alpha=momentum) if nesterov else buffer
            return torch.addcmul(p, direction, rate, value=-1), buffer

        return update

    states = [momentum_buffers] if momentum_buffers else []
    _step_(update_at, params, grads, states, masters, steps, grad_scale, skip, seed, maximize, zero_grads)


def lamb_step_(
    params: Tensors,
    grads: Tensors,
    exp_avgs: Tensors,
    exp_avg_sqs: Tensors,
    masters: Tensors,
    steps: Tensors,
    grad_scale: Tensor,
    lr: Tensor,
    weight_decay: Tensor,
    skip: Tensor | None = None,
    seed: Tensor | None = None,
    *,
    beta1: float,
    beta2: float,
    eps: float,
    trust: bool = True,
    maximize: bool = False,
    zero_grads: bool = False,
) -> None:
    """Moments as in Adam; u = (m/bc1) / (sqrt(v)/sqrt(bc2) + eps) + wd p; p <- p - lr ||p||/||u|| u.

    Two sweeps. u is computed in both from the moments as stored (rounded to their dtype), so that every backend agrees.
    """
    for i, (p, g, m, v) in enumerate(zip(params, grads, exp_avgs, exp_avg_sqs, strict=True)):
        theta = masters[i] if masters else p
        dtype = compute_dtype(p.dtype, g.dtype, m.dtype, v.dtype, theta.dtype)
        t = steps[i].double() + 1
        kept = _kept(skip)

        for gc, mc, vc in chunks(g, m, v, temporaries=TEMPORARIES):
            moments = _moments(mc.to(dtype), vc.to(dtype), _scaled(gc, grad_scale, dtype, maximize), beta1, beta2)
            for stored, new in zip((mc, vc), moments, strict=True):
                stored.copy_(_select(kept, new, stored))
            if zero_grads:
                gc.zero_()

        direction = _lamb_direction(t, dtype, beta1, beta2, eps, weight_decay)
        ratio = _trust_ratio(theta, m, v, direction, dtype) if trust else t.new_ones(())
        rate = (lr.double() * ratio).to(dtype)
        stream = None if seed is None else RoundingStream(seed, i, t)
        for pc, mc, vc, ac in chunks(p, m, v, theta, temporaries=TEMPORARIES):
            old = ac.to(dtype)
            new = old - rate * direction(old, mc.to(dtype), vc.to(dtype))
            _store_params(pc, ac if masters else None, new, kept, stream)
        _advance(steps[i], kept)


def _step_(
    update_at: Callable[[Tensor, torch.dtype], Update],
    params: Tensors,
    grads: Tensors,
    states: Sequence[Tensors],
    masters: Tensors,
    steps: Tensors,
    grad_scale: Tensor,
    skip: Tensor | None,
    seed: Tensor | None,
    maximize: bool,
    zero_grads: bool,
) -> None:
    """One sweep: widen, scale, update, select, store."""
    kept = _kept(skip)
    for i, (p, g) in enumerate(zip(params, grads, strict=True)):
        theta = masters[i] if masters else p
        state = [tensors[i] for tensors in states]
        dtype = compute_dtype(*(x.dtype for x in (p, g, theta, *state)))
        t = steps[i].double() + 1
        update = update_at(t, dtype)
        stream = None if seed is None else RoundingStream(seed, i, t)
        for pc, gc, ac, *sc in chunks(p, g, theta, *state, temporaries=TEMPORARIES):
            wide = _scaled(gc, grad_scale, dtype, maximize)
            new, *new_state = update(ac.to(dtype), wide, *(s.to(dtype) for s in sc))
            for stored, value in zip(sc, new_state, strict=True):
                stored.copy_(_select(kept, value, stored))
            _store_params(pc, ac if masters else None, new, kept, stream)
            if zero_grads:
                gc.zero_()
        _advance(steps[i], kept)


def _scaled(g: Tensor, grad_scale: Tensor, dtype: torch.dtype, maximize: bool) -> Tensor:
    g = g.to(dtype) * grad_scale.to(dtype)
    return -g if maximize else g


def _moments(m: Tensor, v: Tensor, g: Tensor, beta1: float, beta2: float) -> tuple[Tensor, Tensor]:
    # torch's order of operations: lerp, which is exact for beta1 = 0, then ((1 - beta2) g) g, fused into the sum.
    return torch.lerp(m, g, 1 - beta1), torch.addcmul(v * beta2, g * (1 - beta2), g)


def _root(v: Tensor) -> Tensor:
    # Rounded correctly: torch's float32 root on the CPU is a vector library's, which may be an ulp off.
    return v.double().sqrt().to(v.dtype)


def _lamb_direction(
    t: Tensor, dtype: torch.dtype, beta1: float, beta2: float, eps: float, weight_decay: Tensor
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    correction1, correction2 = (1 - beta1**t).to(dtype), (1 - beta2**t).sqrt().to(dtype)
    decay = weight_decay.to(dtype)
    return lambda p, m, v: (m / correction1) / (_root(v) / correction2 + eps) + p * decay


def _trust_ratio(
    theta: Tensor, m: Tensor, v: Tensor, direction: Callable[[Tensor, Tensor, Tensor], Tensor], dtype: torch.dtype
) -> Tensor:
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
