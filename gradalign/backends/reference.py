"""Every op in plain torch: the oracle of the other backends, and the backend that runs anywhere.

Arithmetic is done in the wider of float32 and the storage dtype and rounded once at the store. Temporaries stay below
16 MB, tensors being worked through in chunks; `swap_`, and `perturb_` where a backup is also an input, hold one tensor.
Mutations happen tensor by tensor, a complete backup always before its parameter, so that an interrupt between any two
lines leaves either the old parameter or its backup.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Parameter

from gradalign.backends.chunks import chunks, compute_dtype
from gradalign.backends.reference_scalars import aim as aim
from gradalign.backends.reference_scalars import reached as reached
from gradalign.backends.reference_steps import step_ as step_
from gradalign.backends.signatures import Tensors

NAME = "reference"


def why_unavailable() -> str | None:
    """None: plain torch is always there."""
    return None


def supports(device_type: str, dtypes: frozenset[torch.dtype]) -> bool:
    """Whether tensors of these dtypes on this kind of device can be worked on: always."""
    return True


def norm_dot(xs: Tensors, ys: Tensors | None = None) -> Tensor:
    """[x.x, x.y, y.y] over all tensors; without ys the last two are 0."""
    total = _zeros(3, xs)
    for x, y in zip(xs, xs if ys is None else ys, strict=True):
        for xc, yc in chunks(x, y):
            dtype = compute_dtype(x.dtype, y.dtype)
            a = xc.to(dtype).reshape(-1)
            if ys is None:
                total[0] += _dot(a, a)
            else:
                b = yc.to(dtype).reshape(-1)
                total += torch.stack((_dot(a, a), _dot(a, b), _dot(b, b)))
    return total


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
    total = _zeros(3, params)
    for i, (p, backup, x) in enumerate(zip(params, backups, xs, strict=True)):
        y = None if ys is None else ys[i]
        dtype = compute_dtype(*(t.dtype for t in (p, backup, x, y) if t is not None))
        aliased = not from_backups and (_one_memory(backup, x) or (y is not None and _one_memory(backup, y)))
        moved = torch.empty_like(p) if aliased else p
        if not (aliased or from_backups):
            backup.copy_(p)
        for mc, pc, bc, xc, yc in chunks(moved, p, backup, x, x if y is None else y):
            d = _scaled(xc.to(dtype), scale)
            if y is not None and scale_y is not None:
                d += _scaled(yc.to(dtype), scale_y)
            base = (bc if from_backups else pc).to(dtype, copy=True)
            old = base.to(p.dtype).to(dtype) if from_backups else base
            mc.copy_(base + d)
            delta, d = _flat(mc.to(dtype) - old), _flat(d)
            total += torch.stack((_dot(delta, d), _dot(d, d), _dot(delta, delta)))
        if aliased:
            backup.copy_(p)
            p.copy_(moved)
    return total


def restore_(params: Tensors, backups: Tensors) -> None:
    """theta <- backup; bit for bit where the dtypes agree, else one rounding."""
    for p, backup in zip(params, backups, strict=True):
        p.copy_(backup)


def swap_(params: Tensors, backups: Tensors) -> None:
    """Exchange, bit for bit; the values of `params` are never in a temporary alone."""
    for p, backup in zip(params, backups, strict=True):
        held = backup.clone()
        backup.copy_(p)
        p.copy_(held)


def accumulate_(accs: Tensors, grads: Tensors, scale: Tensor) -> Tensor:
    """acc <- acc + scale g (scale 0 selects, as in `perturb_`); returns [g.g, g.acc] with acc as it was before."""
    total = _zeros(2, accs)
    for acc, g in zip(accs, grads, strict=True):
        for ac, gc in chunks(acc, g):
            wide = gc.to(compute_dtype(ac.dtype, gc.dtype))
            before = ac.to(wide.dtype)
            flat = _flat(wide)
            total += torch.stack((_dot(flat, flat), _dot(flat, _flat(before))))
            ac.copy_(before + _scaled(wide, scale))
    return total


def combine_(outs: Tensors, xs: Tensors, ys: Tensors, a: Tensor, b: Tensor) -> Tensor:
    """out <- a x + b y (an out may be its x or y); returns [out.out]."""
    total = _zeros(1, outs)
    for out, x, y in zip(outs, xs, ys, strict=True):
        for oc, xc, yc in chunks(out, x, y):
            dtype = compute_dtype(oc.dtype, xc.dtype, yc.dtype)
            oc.copy_(xc.to(dtype) * a.to(dtype) + yc.to(dtype) * b.to(dtype))
            stored = _flat(oc.to(dtype))
            total += _dot(stored, stored)
    return total


def _one_memory(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors begin at one address; those that have one in common and are worked on together are the same."""
    known = {Tensor, Parameter}.issuperset((type(a), type(b)))
    return a is b or (known and a.numel() > 0 and a.device == b.device and a.data_ptr() == b.data_ptr())


def _scaled(x: Tensor, scale: Tensor) -> Tensor:
    # Selects instead of multiplying: 0 x inf is NaN, and a displacement of scale 0 must leave theta alone.
    wide = x.to(compute_dtype(x.dtype))
    return (wide * scale.to(wide.dtype)).masked_fill_(scale == 0, 0.0)


def _dot(x: Tensor, y: Tensor) -> Tensor:
    return torch.dot(x.double(), y.double())  # sums of float32 are off by more than what cancels between them


def _flat(x: Tensor) -> Tensor:
    return x.to(compute_dtype(x.dtype)).reshape(-1)


def _zeros(n: int, like: Tensors) -> Tensor:
    return torch.zeros(n, dtype=torch.float64, device=like[0].device if like else "cpu")
