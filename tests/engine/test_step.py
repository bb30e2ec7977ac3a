"""What a step knows once it runs: the radius it displaces by, and how much of the displacement the dtype could represent."""

from __future__ import annotations

import torch
from support.networks import state
from torch import nn

from gradalign import GradAlign


def test_the_radius_follows_dtype_and_autocast():
    def radius(dtype=torch.float32, autocast=None, **options):
        model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).to(dtype)
        aligner = GradAlign(model, 0.1, **options)
        batches = list(torch.randn(4, 5, 3, dtype=dtype))

        def loss_fn(x):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast == "inside"):
                return model(x).float().square().mean()

        with torch.autocast("cpu", torch.bfloat16, enabled=autocast == "outside"):
            aligner.backward(loss_fn, batches)
        return aligner.stats.radius

    assert radius() == 0.01
    assert radius(torch.float64) == 0.01
    assert radius(torch.bfloat16) == 0.03
    assert radius(autocast="inside") == 0.03
    assert radius(autocast="outside") == 0.03
    assert radius(torch.bfloat16, radius=0.2) == 0.2


def test_displacement_cosine_is_reported_for_low_precision():
    torch.manual_seed(0)
    model = nn.Linear(300, 300).to(torch.bfloat16)
    aligner = GradAlign(model, 0.1, radius=0.003)
    batches = list(torch.randn(4, 16, 300, dtype=torch.bfloat16))
    before = state(model)
    aligner.backward(lambda x: model(x).float().square().mean(), batches)
    assert 0 < float(aligner.stats.displacement_cosine) < 0.95
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
