"""A method beside its paper's equation, from the same starting state."""

from __future__ import annotations

import torch

from support import oracle
from support.networks import state, trainable
from support.one_step import run


def filled(model):
    """`.grad` as one vector."""
    params = trainable(model)
    return oracle.flat([p.grad for p in params], params)


def mask_of(model, subset):
    return torch.cat([torch.full((p.numel(),), float(any(p is s for s in subset))) for p in trainable(model)])


def relative(a, b):
    return float((a - b).norm() / b.norm())


def both(model, method, loss_fn, batches, equation, *, how="backward", **arguments):
    """(gradient found, gradient expected, loss found, losses expected); buffers and stream are compared here."""
    before = state(model)
    torch.manual_seed(1)
    expected, losses = equation(model, loss_fn, batches, **arguments)
    after, stream = state(model), torch.rand(3)
    model.load_state_dict(before)
    torch.manual_seed(1)
    loss = run(method, loss_fn, batches, how)
    assert torch.equal(torch.rand(3), stream)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, after[name], rtol=1e-12, atol=1e-14)
    return filled(model), expected, loss, losses
