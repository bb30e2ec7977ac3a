"""Parameters at theta + d, and their way back."""

from __future__ import annotations

import torch
from support.gradients import assert_close, grads
from torch import nn

from gradalign import GradAlign


def test_autocast_around_the_call_does_not_cache_undisplaced_weights():
    model = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 1))
    batches = list(torch.randn(4, 16, 8))
    found = []
    for where in ("inside", "outside"):
        model.zero_grad()
        aligner = GradAlign(model, 10.0, radius=0.5)

        def loss_fn(x, where=where):
            with torch.autocast("cpu", torch.bfloat16, enabled=True, cache_enabled=where == "outside"):
                return model(x).float().square().mean()

        with torch.autocast("cpu", torch.bfloat16, enabled=where == "outside"):
            aligner.backward(loss_fn, batches)
        found.append(grads(model))
    assert_close(found[0], found[1], rtol=1e-6)
