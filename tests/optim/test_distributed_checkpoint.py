"""Runs that go on from `torch.distributed.checkpoint.state_dict`, as a whole and flattened, bit for bit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from gradalign.optim import LAMB, SGD, AdamW

KINDS = {
    "SGD": (SGD, {"momentum": 0.9}),
    "SGD-dampening": (SGD, {"momentum": 0.9, "dampening": 0.5}),
    "SGD-plain": (SGD, {}),
    "AdamW": (AdamW, {"amsgrad": True}),
    "LAMB": (LAMB, {}),
}


def make_model():
    """bfloat16 layers around one of float32, whose parameters have no masters."""
    return nn.Sequential(nn.Linear(4, 8).bfloat16(), nn.LayerNorm(8), nn.Linear(8, 2).bfloat16())


def run(model, optimizer, steps, seed):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        optimizer.step()
        optimizer.zero_grad()


def fill(target, saved):
    """What loading a checkpoint in place does: it writes to what the target has, and to nothing else."""
    for key, value in target.items():
        if isinstance(value, dict):
            fill(value, saved[key])
        elif isinstance(value, torch.Tensor):
            value.copy_(saved[key])
        else:
            target[key] = saved[key]


@pytest.mark.parametrize("in_place", [False, True], ids=["given", "filled"])
@pytest.mark.parametrize("flat", [False, True], ids=["nested", "flat"])
@pytest.mark.parametrize("masters", [False, True], ids=["plain", "masters"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_optimizer_goes_on(kind, masters, flat, in_place):
    cls, kwargs = KINDS[kind]
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    model = make_model()
    optimizer = cls(model.parameters(), lr=0.05, master_weights=masters, **kwargs)
    run(model, optimizer, 5, seed=1)
    saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=options))
    resumed = copy.deepcopy(model)
    fresh = cls(resumed.parameters(), lr=0.05, master_weights=masters, **kwargs)
    if in_place:
        target = get_optimizer_state_dict(resumed, fresh, options=options)
        fill(target, saved)
        saved = target
    set_optimizer_state_dict(resumed, fresh, saved, options=options)
    run(model, optimizer, 3, seed=2)
    run(resumed, fresh, 3, seed=2)
    for p, q in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(p, q)
        assert fresh.state[q].keys() == optimizer.state[p].keys()
        assert all(torch.equal(fresh.state[q][name], value) for name, value in optimizer.state[p].items())


@pytest.mark.parametrize("flat", [False, True], ids=["nested", "flat"])
def test_a_momentum_that_was_never_used_is_still_unused(flat):
    model = make_model()
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    kwargs = {"momentum": 0.9, "dampening": 0.5, "master_weights": True}
    optimizer = SGD(model.parameters(), **kwargs)
    for p in model.parameters():
        p.grad = torch.full_like(p, torch.inf)
    optimizer.step()  # skipped
    saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=options))
    resumed = copy.deepcopy(model)
    fresh = SGD(resumed.parameters(), **kwargs)
    set_optimizer_state_dict(resumed, fresh, saved, options=options)
    run(model, optimizer, 3, seed=2)
    run(resumed, fresh, 3, seed=2)
    assert all(map(torch.equal, model.parameters(), resumed.parameters()))
