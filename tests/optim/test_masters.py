"""float32 masters of bfloat16 and float16 parameters."""

from __future__ import annotations

import pytest
import torch
from support.optim_cases import set_gradients
from torch import distributed
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

import gradalign
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


def test_a_sign_of_zero_that_others_wrote_is_taken_over():
    p = torch.zeros(2).bfloat16().requires_grad_()
    optimizer = SGD([p], master_weights=True)
    optimizer.master(p)
    with torch.no_grad():
        p[0] = -0.0  # equal to its master, and not its rounding
    assert optimizer.master(p).signbit().tolist() == [True, False]


def test_what_a_fused_step_of_torch_wrote_is_taken_over_once_the_version_is_raised():
    p = torch.ones(3).bfloat16().requires_grad_()
    optimizer = SGD([p], lr=0.0, master_weights=True)
    optimizer.master(p)
    p.grad = torch.ones_like(p)
    torch.optim.SGD([p], lr=0.5, fused=True).step()
    torch.autograd.graph.increment_version([p])
    optimizer.step()
    assert torch.equal(p.detach(), torch.full((3,), 0.5).bfloat16())
    assert torch.equal(optimizer.master(p), torch.full((3,), 0.5))


@pytest.fixture
def mesh(tmp_path):
    """Of this process alone."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/init", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def halved_by_torch(p):
    p.grad = torch.ones_like(p)
    torch.optim.AdamW([p], lr=0.5, weight_decay=0.0, fused=True).step()
    torch.autograd.graph.increment_version([p])


WRITES = {"the whole": lambda p: p.mul_(0.5), "its shard": lambda p: p.to_local().mul_(0.5), "torch": halved_by_torch}


@pytest.mark.parametrize("write", WRITES)
def test_a_sharded_parameter_changed_by_others_takes_its_master_along(write, mesh):
    p = torch.nn.Parameter(distribute_tensor(torch.ones(4).bfloat16(), mesh, [Shard(0)]))
    optimizer = SGD([p], lr=0.0, master_weights=True)
    optimizer.master(p)
    with torch.no_grad():
        WRITES[write](p)
    assert torch.equal(optimizer.master(p).to_local(), torch.full((4,), 0.5))


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


def in_dtype(dtype):
    def change(optimizer, p):
        p.data = p.data.to(dtype)

    return change


WIDENED = {
    "float32 parameters": (in_dtype(torch.float32), torch.float32),
    "float64 parameters": (in_dtype(torch.float64), torch.float64),
    "stochastic rounding": (lambda o, _: o.param_groups[0].update(stochastic_rounding=True), torch.float32),
}


@pytest.mark.parametrize("change", WIDENED)
@each_kind
def test_moments_get_the_precision_that_is_asked_for_later(kind, change, backend):
    cls, kwargs = OURS[kind]
    widen, dtype = WIDENED[change]
    p, q = (torch.ones(3).bfloat16().requires_grad_() for _ in range(2))
    changed, resumed = (cls([x], backend=backend, **kwargs) for x in (p, q))
    p.grad = torch.full_like(p, 0.3)
    changed.step()
    q.data = p.data.clone()
    widen(changed, p)
    widen(resumed, q)
    resumed.load_state_dict(changed.state_dict())
    for x, optimizer in ((p, changed), (q, resumed)):
        x.grad = torch.full_like(x, 0.7)
        optimizer.step()
    moments = [name for name in changed.state[p] if name != "step"]
    assert moments
    for name in moments:
        assert changed.state[p][name].dtype == dtype
        assert torch.equal(changed.state[p][name], resumed.state[q][name])
    assert torch.equal(p, q)


def test_a_second_moment_in_16_bits_does_not_freeze_when_the_model_is_widened(backend):
    p = torch.zeros(1).bfloat16().requires_grad_()
    optimizer = AdamW([p], lr=0.0, backend=backend)
    p.grad = torch.full_like(p, 10.0)
    for _ in range(50):
        optimizer.step()
    p.data = p.data.float()
    p.grad = torch.full_like(p, 0.1)
    v = float(optimizer.state[p]["exp_avg_sq"])
    for _ in range(100):
        optimizer.step()
    decayed = 0.999**100
    assert float(optimizer.state[p]["exp_avg_sq"]) == pytest.approx(v * decayed + 0.01 * (1 - decayed), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_widened_parameter_has_no_master(dtype):
    p = torch.nn.Parameter(torch.ones(3).bfloat16())
    optimizer = SGD([p], master_weights=True)
    assert optimizer.master(p) is not None
    p.data = p.data.to(dtype)
    assert optimizer.master(p) is None
    p.data = p.data.bfloat16() * 2
    assert torch.equal(optimizer.master(p), torch.full((3,), 2.0))  # the parameter again is the rounding of one


def test_a_widened_parameter_comes_back_from_an_aligned_step():
    model = torch.nn.Linear(3, 1).bfloat16()
    optimizer = AdamW(model.parameters(), master_weights=True)
    optimizer.master(model.weight)
    model.double()
    with torch.no_grad():
        model.weight.add_(1e-10)
    before = model.weight.clone()
    batches = [torch.randn(4, 3).double() for _ in range(4)]
    gradalign.GradAlign(model, 0.05, optimizer=optimizer).backward(lambda x: model(x).square().mean(), batches)
    assert torch.equal(model.weight, before)


def test_a_skipped_step_leaves_the_master(backend):
    p = torch.ones(2).bfloat16().requires_grad_()
    optimizer = AdamW([p], master_weights=True, backend=backend)
    p.grad = torch.tensor([1.0, torch.inf]).bfloat16()
    optimizer.step()
    assert torch.equal(optimizer.master(p), torch.ones(2))
    assert float(optimizer.state[p]["step"]) == 0
