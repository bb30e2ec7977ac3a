"""Adapters of PEFT: the term is that of double backward on the adapters alone, and the frozen base stays as it is."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import gradalign
from gradalign.estimators import LeaveOneOut


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 1)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


def adapted(dora, dtype):
    torch.manual_seed(1)
    config = LoraConfig(r=2, target_modules=["first", "second"], use_dora=dora, init_lora_weights=False)
    return get_peft_model(Net().to(dtype), config)


def term(model, batches, **options):
    """The term times -1, as the difference that a weight makes to `.grad`."""
    found = []
    for weight in (0.0, 1.0):
        aligner = gradalign.GradAlign(model, weight, objective="variance", normalize="none", **options)
        aligner.backward(lambda x: (model(x).float() - 1).square().mean(), batches)
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad]))
        model.zero_grad()
    return found[1] - found[0]


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_adapters_alone_are_displaced_and_trained(dora, dtype):
    model = adapted(dora, dtype)
    batches = list(torch.randn(4, 16, 8).to(dtype))
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    found = term(model, batches, estimator=LeaveOneOut())
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if not p.requires_grad)
    assert all(p.grad is None for p in model.parameters())
    exact = term(model.float(), [x.float() for x in batches], estimator="exact")
    assert found.isfinite().all()
    cosine = float(nn.functional.cosine_similarity(found, exact, dim=0))
    assert cosine > (0.99 if dtype == torch.float32 else 0.9)
