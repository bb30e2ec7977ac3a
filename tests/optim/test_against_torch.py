"""AdamW and SGD against torch's fused form, and both against float64."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from support.optim_cases import clones, gradient_like, info_tables, paired, parameters, rms, set_gradients, ulp

CASES = {name: rest for name, *rest in paired()}
# Every branch of the updates, for the dtypes beyond float32.
BRANCHES = ("AdamW-amsgrad", "AdamW-beta1-small", "Adam-decay", "SGD-decay", "SGD-dampening", "SGD-nesterov")


def fused(theirs, params, kwargs):
    return theirs(params, fused=True, **copy.deepcopy(kwargs))


def one_step(ours, theirs, kwargs, further, dtype, backend, exact):
    """Ours and torch's parameters (torch's in float64 if exact) after one step from a state that torch made."""
    generator = torch.Generator().manual_seed(0)
    start = parameters(dtype)
    # In float16 torch's loop squares gradients beyond the range, and its fused SGD makes inf of a finite buffer.
    warm = theirs(start, fused=theirs is not torch.optim.SGD, **copy.deepcopy(kwargs))
    for _ in range(3):
        set_gradients(generator, start)
        warm.step()
    a, b = clones(start), clones(start, torch.float64 if exact else dtype)
    mine, reference = ours(a, backend=backend, **copy.deepcopy(kwargs), **further), fused(theirs, b, kwargs)
    for optimizer in (mine, reference):
        optimizer.load_state_dict(copy.deepcopy(warm.state_dict()))
    set_gradients(generator, a, b)
    mine.step()
    reference.step()
    return a, b


def assert_within_two_ulp(a, b, lr):
    for p, q in zip(a, b, strict=True):
        distance = (p.detach().double() - q.detach().double()).abs()
        assert (distance <= 2 * ulp(q.detach().to(p.dtype).abs().clamp(min=lr)).double()).all()


@pytest.mark.parametrize("case", CASES)
def test_one_step_from_equal_state_is_within_two_ulp(case, backend):
    # Bit for bit where torch was compiled for a machine with fused multiply-add; the bound holds everywhere.
    a, b = one_step(*CASES[case], torch.float32, backend, exact=False)
    assert_within_two_ulp(a, b, float(CASES[case][2].get("lr", 1e-3)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", BRANCHES)
def test_one_step_in_other_dtypes_is_within_two_ulp(case, dtype, backend):
    ours, theirs, kwargs, further = CASES[case]
    if dtype == torch.float16 and theirs is not torch.optim.SGD:
        kwargs = {**kwargs, "eps": 1e-3}  # v underflows in float16; torch's own tests raise eps, too
    # torch's fused SGD rounds lr to bfloat16 and float16, and so is itself further away from the exact step than this.
    exact = theirs is torch.optim.SGD and dtype != torch.float64
    a, b = one_step(ours, theirs, kwargs, further, dtype, backend, exact)
    assert_within_two_ulp(a, b, float(kwargs.get("lr", 1e-3)))


@functools.cache
def a_hundred_gradients():
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    start = [p for p in parameters() if 1 < p.numel() < 2000]
    return start, [[gradient_like(p, generator).float() for p in start] for _ in range(100)]


@functools.cache
def info():
    """torch's own tables, whose import takes seconds: not while tests are collected."""
    return {name: rest for name, *rest in info_tables()}


def check_a_hundred_steps(case, backend):
    """They stay together, and ours as near to float64 as torch's."""
    ours, theirs, kwargs, further = case
    start, gradients = a_hundred_gradients()
    a, b, exact = clones(start), clones(start), clones(start, torch.float64)
    steppers = [
        ours(a, backend=backend, **copy.deepcopy(kwargs), **further),
        fused(theirs, b, kwargs),
        fused(theirs, exact, kwargs),
    ]
    for grads in gradients:
        for optimizer, params in zip(steppers, (a, b, exact), strict=True):
            for p, g in zip(params, grads, strict=True):
                p.grad = torch.empty_like(p, requires_grad=False).copy_(g)
            optimizer.step()
    for p, q in zip(a, b, strict=True):
        assert ((p - q).abs() <= 1e-6 + 1e-5 * q.abs()).all(), case
    assert rms(a, exact) <= 1.5 * rms(b, exact), case


@pytest.mark.parametrize("case", CASES)
def test_a_hundred_steps_stay_together_and_as_near_to_float64(case, backend):
    check_a_hundred_steps(CASES[case], backend)


def test_so_do_a_hundred_steps_of_every_case_in_torchs_tables(backend):
    for case in info().values():
        check_a_hundred_steps(case, backend)


def test_torchs_tables_are_used_where_they_can_be_imported():
    pytest.importorskip("torch.testing._internal.common_optimizers")
    assert {name.split("-")[0] for name in info()} == {"AdamW", "SGD"}
    assert len(info()) >= 14
