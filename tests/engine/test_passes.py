"""One pass: where autocast is seen."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gradalign import GradAlign


class AutocastInside(nn.Module):
    """Opens autocast itself, as a model prepared by an Accelerator does."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.inner(x).float().square().mean()

    def training_loss(self, x):
        return self.inner(x).float().square().mean()


@pytest.mark.parametrize("where", ["in forward", "around forward", "around a part", "around another method"])
def test_autocast_is_seen_wherever_it_is_opened(where):
    model = AutocastInside()
    if where == "around forward":
        model.inner.forward = torch.autocast("cpu", torch.bfloat16)(model.inner.forward)
    calls = {
        "in forward": model,
        "around forward": lambda x: model.inner(x).float().square().mean(),
        "around a part": lambda x: model.inner[2](
            torch.autocast("cpu", torch.bfloat16)(model.inner[0])(x).float()
        ).mean(),
        "around another method": torch.autocast("cpu", torch.bfloat16)(model.training_loss),
    }
    aligner = GradAlign(model, 0.1)
    for _ in range(2):
        model.zero_grad()
        aligner.backward(calls[where], list(torch.randn(4, 5, 3)))
        assert aligner.stats.radius == 0.03


def test_autocast_is_seen_in_every_step_of_a_compiled_model():
    model = nn.Linear(4, 1)
    compiled = torch.compile(model, backend="aot_eager")
    aligner = GradAlign(model, 0.1)

    def loss_fn(x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return compiled(x).float().square().mean()

    for _ in range(3):
        aligner.backward(loss_fn, list(torch.randn(4, 3, 4)))
        model.zero_grad()
        assert aligner.stats.radius == 0.03
