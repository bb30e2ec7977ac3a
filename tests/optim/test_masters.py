"""float32 masters of bfloat16 and float16 parameters."""

from __future__ import annotations

import pytest
import torch
from support.optim_cases import set_gradients

from gradalign import ops
from gradalign.optim import LAMB, SGD, AdamW

OURS = {"AdamW": (AdamW, {}), "SGD": (SGD, {"momentum": 0.9}), "LAMB": (LAMB, {})}
each_kind = pytest.mark.parametrize("kind", OURS)
each_dtype = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


def pair(kind, dtype, backend):
    """A parameter with a master, its optimizer, and the same in float32."""
    cls, kwargs = OURS[kind]
    low = torch.randn(1025).to(dtype).requires_grad_()
    wide = low.detach().float().requires_grad_()
    return low, cls([low], master_weights=True, backend=backend, **kwargs), wide, cls([wide], backend=backend, **kwargs)


@each_dtype
@each_kind
def test_masters_train_as_float32_would(kind, dtype, backend):
    low, mine, wide, other = pair(kind, dtype, backend)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        set_gradients(generator, [low], [wide])  # the same numbers: rounded to the low precision first
        mine.step()
        other.step()
    assert torch.equal(mine.master(low), wide.detach())
    assert torch.equal(low.detach(), wide.detach().to(dtype))
    assert torch.equal(mine.first_moment(low), other.first_moment(wide))


def test_masters_exist_when_they_are_asked_for_and_only_where_they_are_needed():
    low, wide = torch.ones(2).bfloat16().requires_grad_(), torch.ones(2, requires_grad=True)
    optimizer = AdamW([low, wide], master_weights=True)
    assert not optimizer.state
    assert optimizer.master(low).dtype == torch.float32
    assert optimizer.master(low).data_ptr() == optimizer.state[low]["master"].data_ptr()
    assert optimizer.master(wide) is None
    assert AdamW([low]).master(low) is None
    assert AdamW([low]).first_moment(low) is None
    assert SGD([low], momentum=0.0).first_moment(low) is None


def test_a_parameter_changed_by_others_takes_its_master_along(backend):
    p = torch.tensor([1.0, 2.0, 3.0]).bfloat16().requires_grad_()
    optimizer = SGD([p], lr=1.0, master_weights=True, backend=backend)
    p.grad = torch.full((3,), 2**-10).bfloat16()  # below what bfloat16 can take from 1
    optimizer.step()
    with torch.no_grad():
        p[1] = 8.0  # a checkpoint loaded into the model, say
    p.grad.zero_()
    optimizer.step()
    kept = 1.0 - 2**-10
    assert torch.equal(optimizer.master(p), torch.tensor([kept, 8.0, 3.0 - 2**-10]))
    assert torch.equal(p.detach(), torch.tensor([kept, 8.0, 3.0 - 2**-10]).bfloat16())


def test_master_is_up_to_date_when_it_is_asked_for():
    p = torch.ones(2).bfloat16().requires_grad_()
    optimizer = AdamW([p], master_weights=True)
    with torch.no_grad():
        p.fill_(4.0)
    assert torch.equal(optimizer.master(p), torch.full((2,), 4.0))


def test_displaced_and_restored_from_masters_is_as_before(backend):
    p = torch.randn(1025).bfloat16().requires_grad_()
    optimizer = AdamW([p], master_weights=True, backend=backend)
    p.grad = torch.randn(1025).bfloat16()
    optimizer.step()
    master, before = optimizer.master(p), p.detach().clone()
    kept = master.clone()
    ops.perturb_([p], [master], [torch.randn(1025)], torch.tensor(0.1), from_backups=True)
    assert not torch.equal(p, before)
    ops.restore_([p], [master])
    optimizer.masters_match([p])
    assert torch.equal(p, before)
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    assert torch.equal(optimizer.master(p), kept)


def test_masters_match_spares_the_comparison():
    p = torch.ones(2).bfloat16().requires_grad_()
    optimizer = SGD([p], lr=0.0, master_weights=True)
    optimizer.master(p)
    with torch.no_grad():
        p.fill_(4.0)
    optimizer.masters_match([p])  # a promise, taken at its word
    assert torch.equal(optimizer.master(p), torch.ones(2))


def test_another_tensor_in_the_place_of_a_parameter_is_seen():
    p, other = (torch.nn.Parameter(torch.ones(3).bfloat16()) for _ in range(2))
    optimizer = SGD([p], lr=0.0, master_weights=True)
    p.grad = torch.ones_like(p)
    optimizer.step()
    p.grad = None
    with torch.no_grad():
        other.zero_()
    assert other._version == p._version  # the case that versions do not tell
    torch.utils.swap_tensors(p, other)
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert torch.equal(p, torch.zeros(3).bfloat16())


def test_parameters_whose_writes_nobody_counts_have_masters(backend):
    with torch.inference_mode():
        p = torch.ones(3).bfloat16()
        optimizer = SGD([p], lr=2**-10, master_weights=True, backend=backend)
        for _ in range(2):
            p.grad = torch.ones_like(p)
            optimizer.step()
        assert torch.equal(optimizer.master(p), torch.full((3,), 1 - 2**-9))


def test_moments_get_the_precision_of_masters_that_are_switched_on_later(backend):
    p = torch.ones(3).bfloat16().requires_grad_()
    optimizer = AdamW([p], backend=backend)
    for master_weights in (False, True):
        optimizer.param_groups[0]["master_weights"] = master_weights
        p.grad = torch.ones_like(p)
        optimizer.step()
    assert {name: t.dtype for name, t in optimizer.state[p].items()} == dict.fromkeys(
        ("step", "exp_avg", "exp_avg_sq", "master"), torch.float32
    )
    assert float(optimizer.state[p]["step"]) == 2


def test_a_skipped_step_leaves_the_master(backend):
    p = torch.ones(2).bfloat16().requires_grad_()
    optimizer = AdamW([p], master_weights=True, backend=backend)
    p.grad = torch.tensor([1.0, torch.inf]).bfloat16()
    optimizer.step()
    assert torch.equal(optimizer.master(p), torch.ones(2))
    assert float(optimizer.state[p]["step"]) == 0
