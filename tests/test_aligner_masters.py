"""`GradAlign(..., optimizer=opt)`: float32 masters instead of a backup."""

from __future__ import annotations

import pytest
import torch
from support.measure import OBJECTIVES
from support.networks import state
from support.one_step import run
from torch import nn

import gradalign
from gradalign.optim import AdamW


def low_precision(dtype=torch.bfloat16):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 40), nn.Tanh(), nn.Linear(40, 30), nn.LayerNorm(30)).to(dtype)
    model[3].float()  # a parameter that needs no master
    batches = list(torch.randn(8, 16, 30, dtype=dtype))

    def loss_fn(x):
        return model[3](model[:3](x).float()).square().mean() + model[2].weight.float().square().mean()

    return model, loss_fn, batches


@pytest.mark.parametrize("how", ["backward", "accumulate"])
@pytest.mark.parametrize("difference", ["forward", "central"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_parameters_and_masters_come_back_bit_for_bit(objective, difference, how):
    model, loss_fn, batches = low_precision()
    optimizer = AdamW(model.parameters(), lr=1e-3, master_weights=True)
    aligner = gradalign.GradAlign(model, 0.03, objective=objective, difference=difference, optimizer=optimizer)
    for _ in range(3):
        masters = [None if (m := optimizer.master(p)) is None else m.clone() for p in model.parameters()]
        before = state(model)
        assert sum(m is not None for m in masters) == 4
        run(aligner, loss_fn, batches, how)
        assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
        for p, m in zip(model.parameters(), masters, strict=True):
            assert m is None or torch.equal(optimizer.master(p), m)
        optimizer.step()
        optimizer.zero_grad()


def test_the_displaced_values_are_the_rounded_sum_of_master_and_displacement():
    model, loss_fn, batches = low_precision()
    optimizer = AdamW(model.parameters(), lr=1e-3, master_weights=True)
    aligner = gradalign.GradAlign(model, 0.03, radius=2.0, optimizer=optimizer)
    for p in model.parameters():  # masters that are not representable in bf16
        if (m := optimizer.master(p)) is not None:
            m.mul_(1 + 1e-3)
            with torch.no_grad():
                p.copy_(m)
    seen = {}

    def watching(x):
        loss = loss_fn(x)
        if aligner.displaced and not seen:
            gradient = [p.grad.detach().float() for p in model.parameters()]
            norm = sum(float(g.double().square().sum()) for g in gradient) ** 0.5
            for p, g in zip(model.parameters(), gradient, strict=True):
                m = optimizer.state[p]["master"] if p.dtype == torch.bfloat16 else None
                seen[p] = (p.detach().clone(), None if m is None else (m + g * (2.0 / norm)).bfloat16())
        return loss

    masters = {p: optimizer.master(p).clone() for p in model.parameters() if optimizer.master(p) is not None}
    aligner.backward(watching, batches)
    assert len(masters) == 4
    num_moved = 0
    for p, (displaced, expected) in seen.items():
        if expected is not None:
            torch.testing.assert_close(displaced, expected, rtol=2**-7, atol=1e-6)
            num_moved += int((displaced != p).sum())
    assert num_moved > 50


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
@pytest.mark.parametrize("number", [1, 7, 8, 9, 10])
@pytest.mark.parametrize("how", ["backward", "accumulate"])
def test_an_exception_leaves_parameters_and_masters(how, number, error):
    model, loss_fn, batches = low_precision()
    optimizer = AdamW(model.parameters(), lr=1e-3, master_weights=True)
    aligner = gradalign.GradAlign(model, 0.03, optimizer=optimizer)
    before = state(model)
    calls = 0

    def failing(x):
        nonlocal calls
        calls += 1
        if calls == number:
            raise error
        return loss_fn(x)

    with pytest.raises(error):
        run(aligner, failing, batches, how)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_an_optimizer_of_another_library_is_refused():
    model, _, _ = low_precision()
    with pytest.raises(TypeError, match=r"optimizer: expected an optimizer of gradalign.optim; got Adam"):
        gradalign.GradAlign(model, 0.1, optimizer=torch.optim.Adam(model.parameters()))
