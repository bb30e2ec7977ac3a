"""LAMB's ratio of norms where this process holds a part of a parameter only.

The step op takes the norms of what it is given. u is therefore computed once before the step, from moments that are moved in a
copy, a piece of bounded size at a time; its square and that of theta are added over the ranks, those of all parameters in one
reduction. The op then runs without norms of its own, at a learning rate that the ratio multiplies.
"""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import torch
from torch import Tensor

from gradalign.backends.chunks import chunks, compute_dtype
from gradalign.backends.signatures import LAMBOptions, StepScalars, StepTensors
from gradalign.optim.batch import Batch

COPIES = 3  # of a piece: u and both moments


def squares(batch: Batch, backend: ModuleType, factor: Tensor, decay: Tensor, options: LAMBOptions) -> Tensor:
    """[theta . theta, u . u] over what this process holds, float64.

    Args:
        batch: one parameter.
        backend: what runs the ops.
        factor: of the gradient.
        decay: the weight decay.
        options: of the step.
    """
    (theta,) = batch.states("master") or batch.params
    (grad,), (m,), (v,) = batch.grads, batch.states("exp_avg"), batch.states("exp_avg_sq")
    dtype = compute_dtype(*(t.dtype for t in (theta, grad, m, v)))
    one, zero, minus = (factor.new_full((), value) for value in (1.0, 0.0, -1.0))
    alone = replace(options, trust=False, zero_grads=False)
    sums = torch.zeros(2, dtype=torch.float64, device=theta.device)
    for piece, g, *moments in chunks(theta, grad, m, v, temporaries=COPIES):
        u = torch.zeros_like(piece, dtype=dtype)  # a step of length 1 from 0 without decay: -u, but for the decay
        steps = [batch.states("step")[0].clone()]
        moved = tuple([t.clone()] for t in moments)
        backend.step_(StepTensors([u], [g], moved, [], steps), StepScalars(factor, one, zero), alone)
        own = backend.combine_([u], [u], [piece], minus, decay)
        sums += torch.stack((backend.norm_dot([piece])[0], own.reshape(())))
    return sums


def ratios(squares: Tensor) -> Tensor:
    """||theta|| / ||u|| from rows of squares, 1 where either is 0."""
    return torch.where((squares > 0).all(-1), (squares[..., 0] / squares[..., 1]).sqrt(), 1.0)
