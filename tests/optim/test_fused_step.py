"""What the fused step adds: clip, skip, unscale, clear; and what it leaves as torch has it."""

from __future__ import annotations

import copy
import inspect
import tempfile

import pytest
import torch
from support.optim_cases import clones, parameters, set_gradients
from torch import distributed
from torch.distributed.fsdp import FullyShardedDataParallel

from gradalign.optim import LAMB, SGD, AdamW

OURS = {"AdamW": (AdamW, {}), "SGD": (SGD, {"momentum": 0.9}), "LAMB": (LAMB, {})}
each_kind = pytest.mark.parametrize("kind", OURS)


def make(kind, params, backend="auto", **kwargs):
    cls, defaults = OURS[kind]
    return cls(params, backend=backend, **{**defaults, **kwargs})


def with_gradients(seed=0):
    params = parameters()
    set_gradients(torch.Generator().manual_seed(seed), params)
    return params


def copied(params):
    twins = clones(params)
    for p, q in zip(params, twins, strict=True):
        q.grad = p.grad.clone()
    return twins


def everything(optimizer, params):
    return [p.detach().clone() for p in params] + [v.clone() for p in params for v in optimizer.state[p].values()]


def assert_same(before, after):
    assert len(before) == len(after)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def norm_of(params):
    return torch.cat([p.grad.double().flatten() for p in params]).norm()


@pytest.mark.parametrize("limit", [1e-3, 1.0, 1e9, float("inf"), torch.tensor(0.5)], ids=str)
@each_kind
def test_clipping_equals_clip_grad_norm(kind, limit, backend):
    a = with_gradients()
    b = copied(a)
    groups = [{"params": a[:2]}, {"params": a[2:], "lr": 0.01}]  # one norm over all groups
    mine = make(kind, groups, backend, max_grad_norm=limit)
    mine.step()
    other = make(kind, [{"params": b[:2]}, {"params": b[2:], "lr": 0.01}], backend)
    norm = torch.nn.utils.clip_grad_norm_(b, limit)
    other.step()
    assert torch.allclose(mine.grad_norm, norm.double(), rtol=1e-5)
    for p, q in zip(a, b, strict=True):
        assert torch.allclose(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("limit", [None, 1.0])
@each_kind
def test_a_step_with_a_nonfinite_gradient_changes_nothing(kind, limit, bad, backend):
    params = with_gradients()
    optimizer = make(kind, params, backend, max_grad_norm=limit)
    optimizer.step()
    before = everything(optimizer, params)
    params[3].grad[7] = bad
    optimizer.step()
    assert_same(before, everything(optimizer, params))
    assert not optimizer.grad_norm.isfinite()
    params[3].grad[7] = 0.5
    optimizer.step()
    assert not torch.equal(params[3], before[3])
    assert float(optimizer.state[params[3]]["step"]) == 2


def test_skipping_can_be_turned_off_and_then_no_norm_is_read(backend):
    params = with_gradients()
    optimizer = AdamW(params, skip_nonfinite=False, backend=backend)
    params[3].grad[7] = torch.nan
    optimizer.step()
    assert optimizer.grad_norm is None
    assert params[3].isnan().sum() == 1


@each_kind
def test_clear(kind, backend):
    params = with_gradients()
    gradients = [p.grad.clone() for p in params]
    make(kind, params, backend).step()
    assert_same(gradients, [p.grad for p in params])
    places = [p.grad.data_ptr() for p in params]
    make(kind, params, backend, clear="zero").step()
    assert all(bool((p.grad == 0).all()) for p in params)
    assert [p.grad.data_ptr() for p in params] == places
    make(kind, params, backend, clear="none").step()
    assert all(p.grad is None for p in params)


@pytest.mark.parametrize("num", [1, 100])  # handed to the kernel by torch, and as rows
@pytest.mark.parametrize("clear", [None, "zero", "none"])
@each_kind
def test_gradients_with_the_negative_bit(kind, clear, num, backend):
    params = [torch.tensor([1.0, -2.0]).requires_grad_() for _ in range(num)]
    plain = clones(params)
    for p, q in zip(params, plain, strict=True):
        p.grad = torch.complex(torch.ones(2), torch.tensor([0.5, -0.25])).conj().imag
        assert p.grad.is_neg()
        q.grad = p.grad.resolve_neg()
    gradients = [p.grad for p in params]
    before = [g.clone() for g in gradients]
    make(kind, params, backend, clear=clear, max_grad_norm=0.5).step()
    make(kind, plain, backend, clear=clear, max_grad_norm=0.5).step()
    assert_same([p.detach() for p in params], [q.detach() for q in plain])
    assert_same([torch.zeros(2) if clear == "zero" else g for g in before], gradients)
    kept = [p.grad is g for p, g in zip(params, gradients, strict=True)]
    assert kept == [clear != "none"] * num


@each_kind
def test_gradients_are_zeroed_where_the_step_is_skipped(kind, backend):
    params = with_gradients()
    params[3].grad[7] = torch.inf
    before = [p.detach().clone() for p in params]
    make(kind, params, backend, clear="zero").step()
    assert_same(before, [p.detach() for p in params])
    assert all(bool((p.grad == 0).all()) for p in params)


@pytest.mark.parametrize("limit", [None, 0.5])
@pytest.mark.parametrize("unscaled_before", [False, True])
@each_kind
def test_grad_scaler(kind, unscaled_before, limit, backend):
    a = with_gradients()
    b = copied(a)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.ones(()))  # makes the scale
    for p in a:
        p.grad *= 1024.0
    mine, other = make(kind, a, backend, max_grad_norm=limit), make(kind, b, backend, max_grad_norm=limit)
    if unscaled_before:
        scaler.unscale_(mine)
    scaler.step(mine)
    scaler.update()
    other.step()
    for p, q in zip(a, b, strict=True):
        assert torch.allclose(p, q, rtol=1e-6, atol=1e-7)
    assert scaler.get_scale() == 1024.0
    assert not hasattr(mine, "grad_scale")
    if limit is not None:
        assert torch.allclose(mine.grad_norm, norm_of(b), rtol=1e-5)


@pytest.mark.parametrize("skip_nonfinite", [True, False])
@each_kind
def test_grad_scaler_finds_inf_and_the_step_is_skipped_on_the_device(kind, skip_nonfinite, backend):
    params = with_gradients()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.ones(()))
    optimizer = make(kind, params, backend, skip_nonfinite=skip_nonfinite)
    scaler.step(optimizer)
    scaler.update()
    before = everything(optimizer, params)
    params[4].grad[0] = torch.inf
    scaler.step(optimizer)
    scaler.update()
    assert_same(before, everything(optimizer, params))
    assert scaler.get_scale() == 512.0


def test_scale_and_settings_may_be_tensors(backend):
    a = with_gradients()
    b = copied(a)
    numbers = AdamW(a, lr=0.01, weight_decay=0.1, max_grad_norm=0.5, backend=backend)
    lr, decay, limit = torch.tensor(0.01), torch.tensor([0.1], dtype=torch.float64), torch.tensor(0.5)
    tensors = AdamW(b, lr=lr, weight_decay=decay, max_grad_norm=limit, backend=backend)
    for p in b:
        p.grad *= 4
    tensors.grad_scale = torch.tensor(4.0)
    for optimizer in (numbers, tensors):
        optimizer.step()
    for p, q in zip(a, b, strict=True):
        assert torch.allclose(p, q, rtol=1e-6, atol=1e-7)
    lr.fill_(0.0)  # read at every step
    decay.fill_(0.0)
    before = [q.detach().clone() for q in b]
    tensors.step()
    assert_same(before, [q.detach() for q in b])


@each_kind
def test_schedulers_drive_it_as_torchs(kind):
    p, q = (torch.ones(3, requires_grad=True) for _ in range(2))
    mine = make(kind, [p], lr=1.0)
    other = torch.optim.SGD([q], lr=1.0, momentum=0.9)
    schedules = [
        torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.5, total_steps=6) for optimizer in (mine, other)
    ]
    for _ in range(5):
        for x, optimizer, schedule in zip((p, q), (mine, other), schedules, strict=True):
            x.grad = torch.ones(3)
            optimizer.step()
            schedule.step()
        assert mine.param_groups[0]["lr"] == other.param_groups[0]["lr"]


@each_kind
def test_none_gradients_and_differing_step_counts(kind, backend):
    params = [torch.ones(3, requires_grad=True) for _ in range(2)]
    optimizer = make(kind, params, backend)
    optimizer.step()  # no gradient at all
    params[0].grad = torch.ones(3)
    optimizer.step()
    assert torch.equal(params[1].detach(), torch.ones(3))
    assert params[1] not in optimizer.state
    params[1].grad = torch.ones(3)
    optimizer.step()
    assert [float(optimizer.state[p]["step"]) for p in params] == [2, 1]
    alone = torch.ones(3, requires_grad=True)
    alone.grad = torch.ones(3)
    make(kind, [alone], backend).step()
    assert torch.equal(params[1], alone)  # its own first step, whatever the other's count


@each_kind
def test_groups_added_later_and_an_empty_one(kind, backend):
    a, b = (torch.ones(3, requires_grad=True) for _ in range(2))
    optimizer = make(kind, [{"params": []}, {"params": [a]}], backend, lr=0.0)
    optimizer.add_param_group({"params": b, "lr": 0.5})
    a.grad, b.grad = torch.ones(3), torch.ones(3)
    optimizer.step()
    assert torch.equal(a.detach(), torch.ones(3))
    assert bool((b < 0.9).all())


def test_a_step_calls_closure_and_hooks():
    p = torch.ones(3, requires_grad=True)
    optimizer = AdamW([("name", p)])
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))

    def closure():
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        calls.append("closure")
        return loss

    assert optimizer.step(closure).item() == 3.0
    assert calls == ["before", "closure", "after"]
    assert optimizer.param_groups[0]["param_names"] == ["name"]
    assert bool((p < 1).all())


def test_mixed_dtypes_and_layouts_in_one_group(backend):
    params = [torch.randn(4, 6).to(d).requires_grad_() for d in (torch.float32, torch.bfloat16, torch.float64)]
    params.append(torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last).requires_grad_())
    for p in params:
        p.grad = torch.randn(p.shape, dtype=p.dtype)  # row-major, whatever the parameter's layout
    alone = [p.detach().clone(memory_format=torch.contiguous_format).requires_grad_() for p in params]
    for p, q in zip(params, alone, strict=True):
        q.grad = p.grad.clone()
        AdamW([q], backend=backend).step()
    AdamW(params, backend=backend).step()
    for p, q in zip(params, alone, strict=True):
        assert torch.equal(p, q)
    assert not params[-1].is_contiguous()


def test_the_state_is_made_where_a_setting_is_turned_on_later(backend):
    p, q = (torch.ones(3, requires_grad=True) for _ in range(2))
    mine, other = SGD([p], lr=0.5, backend=backend), torch.optim.SGD([q], lr=0.5)
    for momentum in (0.0, 0.9, 0.9):
        for x, optimizer in ((p, mine), (q, other)):
            optimizer.param_groups[0].update(momentum=momentum, dampening=0.5)
            x.grad = torch.ones(3)
            optimizer.step()
    assert torch.allclose(p, q)


def test_sparse_gradients_are_refused_and_nothing_is_touched():
    table, p = torch.nn.Embedding(5, 2, sparse=True), torch.ones(3, requires_grad=True)
    p.grad = torch.ones(3)
    table(torch.tensor([1])).sum().backward()
    optimizer = AdamW([p, *table.parameters()])
    with pytest.raises(
        TypeError, match="AdamW does not support sparse gradients: expected dense ones; got torch.sparse_coo"
    ):
        optimizer.step()
    assert torch.equal(p.detach(), torch.ones(3))


@pytest.mark.parametrize(
    ("cls", "kwargs", "error", "words"),
    [
        (AdamW, {"lr": -1.0}, ValueError, "Invalid learning rate: -1.0; expected a number of at least 0 for lr"),
        (AdamW, {"lr": torch.ones(2)}, ValueError, "Tensor lr must be 1-element"),
        (AdamW, {"eps": -1.0}, ValueError, "Invalid epsilon value: -1.0"),
        (AdamW, {"weight_decay": -1}, ValueError, "Invalid weight_decay value: -1"),
        (AdamW, {"betas": (1.0, 0.0)}, ValueError, "Invalid beta parameter at index 0: 1.0; expected a number in"),
        (AdamW, {"betas": (0.9, torch.tensor(0.9))}, ValueError, "betas must be either both floats or both Tensors"),
        (SGD, {"momentum": -0.5}, ValueError, "Invalid momentum value: -0.5"),
        (
            SGD,
            {"nesterov": True},
            ValueError,
            "Nesterov momentum requires a momentum and zero dampening; got momentum=0",
        ),
        (AdamW, {"betas": (0.9,)}, ValueError, r"betas: expected two decay rates, as in \(0.9, 0.999\); got \(0.9,\)"),
        (LAMB, {"betas": (0.9, 0.99, 0.999)}, ValueError, "betas: expected two decay rates"),
        (AdamW, {"betas": 0.9}, ValueError, "betas: expected two decay rates, as in .*; got 0.9"),
        (
            AdamW,
            {"betas": (0.9, "0.9")},
            TypeError,
            r"betas\[1\]: expected a number or a 0-dim tensor; got str \('0.9'\)",
        ),
        (AdamW, {"lr": "0.1"}, TypeError, r"lr: expected a number or a 0-dim tensor; got str \('0.1'\)"),
        (LAMB, {"weight_decay": None}, TypeError, r"weight_decay: expected a number or a 0-dim tensor; got NoneType"),
        (SGD, {"momentum": [0.9]}, TypeError, r"momentum: expected a number or a 0-dim tensor; got list"),
        (AdamW, {"max_grad_norm": 0.0}, ValueError, "max_grad_norm: expected a number above 0, or None"),
        (
            AdamW,
            {"max_grad_norm": "1"},
            TypeError,
            r"max_grad_norm: expected a number or a 0-dim tensor; got str \('1'\)",
        ),
        (
            AdamW,
            {"max_grad_norm": torch.ones(2)},
            ValueError,
            r"max_grad_norm: expected a 0-dim tensor; got shape \(2,\)",
        ),
        (
            SGD,
            {"differentiable": True},
            ValueError,
            "differentiable: expected False; got True; a fused step writes in place",
        ),
        (AdamW, {"differentiable": True}, ValueError, "differentiable: expected False; got True"),
        (AdamW, {"clear": "all"}, ValueError, "clear: expected one of 'none', 'zero'; got 'all'"),
        (AdamW, {"backend": "cuda"}, ValueError, "backend: expected one of"),
        (AdamW, {"rounding_seed": -1}, ValueError, r"rounding_seed: expected an integer in \[0, 2\^32\); got -1"),
        (
            LAMB,
            {"master_weights": True, "stochastic_rounding": True},
            ValueError,
            "expected master_weights or stochastic_rounding; got both",
        ),
    ],
)
def test_settings_out_of_range_are_refused(cls, kwargs, error, words):
    with pytest.raises(error, match=words):
        cls([torch.ones(1, requires_grad=True)], **kwargs)


@pytest.mark.parametrize(
    ("param", "kwargs", "words"),
    [
        (torch.ones(2, dtype=torch.complex64), {}, "expected real parameters; got torch.complex64"),
        (torch.ones(2, dtype=torch.float16), {"stochastic_rounding": True}, "expected bfloat16 .* got torch.float16"),
    ],
)
def test_parameters_of_another_kind_are_refused(param, kwargs, words):
    with pytest.raises(TypeError, match=words):
        AdamW([param], **kwargs)
    optimizer = AdamW([torch.ones(1, requires_grad=True)], **kwargs)
    with pytest.raises(TypeError, match=words):
        optimizer.add_param_group({"params": [param]})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.float8_e4m3fn], ids=str)
def test_parameters_of_few_bits_may_be_frozen_and_are_not_stepped(dtype):
    frozen = torch.nn.Parameter(torch.ones(2).to(dtype), requires_grad=False)
    p = torch.ones(2, requires_grad=True)
    optimizer = AdamW([frozen, p])
    p.grad = torch.ones(2)
    optimizer.step()
    frozen.grad = torch.ones(2).to(dtype)
    with pytest.raises(TypeError, match=f"expected parameters of 16 bits or more, .*got {dtype} with a gradient"):
        optimizer.step()
    assert float(optimizer.state[p]["step"]) == 1


@each_kind
def test_expanded_parameters_are_refused(kind, backend):
    words = r"own each of their elements; got one of shape \(4,\) with an element in several places"
    with pytest.raises(ValueError, match=words):
        make(kind, [torch.zeros(1).expand(4).detach().requires_grad_()], backend)
    p = torch.zeros(4, requires_grad=True)
    optimizer = make(kind, [p], backend)
    with pytest.raises(ValueError, match=words):
        optimizer.add_param_group({"params": [torch.zeros(1).expand(4).detach().requires_grad_()]})
    assert len(optimizer.param_groups) == 1
    p.data = torch.zeros(1).expand(4)
    p.grad = torch.ones(4)
    with pytest.raises(ValueError, match=words):
        optimizer.step()
    assert torch.equal(p.detach(), torch.zeros(4))


def test_a_parameter_that_is_given_twice_is_refused():
    p = torch.ones(2, requires_grad=True)
    with (
        pytest.raises(ValueError, match="expected every parameter once; got one several times"),
        pytest.warns(match="duplicate"),
    ):
        AdamW([p, p])


def test_windows_of_one_buffer_are_refused():
    base = torch.zeros(10)
    with pytest.raises(ValueError, match="an element in several places"):
        AdamW([base.as_strided((4, 4), (2, 1))])
    AdamW([base.as_strided((5, 2), (1, 5))])


def test_the_parameters_of_fsdp1_are_refused():
    with tempfile.TemporaryDirectory() as folder:
        distributed.init_process_group("gloo", init_method=f"file://{folder}/init", rank=0, world_size=1)
        try:
            for original in (False, True):
                model = FullyShardedDataParallel(
                    torch.nn.Linear(4, 2), device_id=torch.device("cpu"), use_orig_params=original
                )
                with pytest.raises(TypeError, match="got those of FSDP1.*use fully_shard"):
                    AdamW(model.parameters())
        finally:
            distributed.destroy_process_group()


@pytest.mark.parametrize("num", [1, 100])
def test_a_parameter_of_another_shape_than_its_state_is_refused(num, backend):
    params = [torch.zeros(2, 5, requires_grad=True) for _ in range(num)]
    optimizer = AdamW(params, backend=backend)
    for p in params:
        p.grad = torch.ones(2, 5)
    optimizer.step()
    params[-1].grad = None
    params[-1].data = torch.zeros(5, 2)
    params[-1].grad = torch.ones(5, 2)
    before = [p.detach().clone() for p in params]
    with pytest.raises((ValueError, RuntimeError)):  # the reference says it in torch's words
        optimizer.step()
    assert backend == "reference" or all(map(torch.equal, params, before))


EXTRA = {
    "AdamW": {"nesterov": True, "momentum": "mine", "trust": None},
    "SGD": {"betas": 1, "eps": "mine", "trust": None},
    "LAMB": {"nesterov": True, "fused": True, "foreach": False, "capturable": True, "amsgrad": True},
}


@each_kind
def test_keys_of_a_group_that_the_optimizer_does_not_know_are_kept_and_ignored(kind, backend):
    params = with_gradients()[3:4]
    (p,), (q,) = params, copied(params)
    extra = EXTRA[kind] | {"name": "head"}
    optimizer, plain = make(kind, [{"params": [p], **extra}], backend), make(kind, [q], backend)
    optimizer.step()
    plain.step()
    assert torch.equal(p, q)
    for group in (optimizer.param_groups[0], optimizer.state_dict()["param_groups"][0]):
        assert {key: group[key] for key in extra} == extra
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.add_param_group({"params": [torch.ones(1, requires_grad=True)], **extra})
    assert {key: optimizer.param_groups[1][key] for key in extra} == extra


def test_state_left_on_another_device_is_refused():
    p = torch.ones(2, requires_grad=True)
    optimizer = AdamW([p])
    p.grad = torch.ones(2)
    optimizer.step()
    optimizer.state[p]["exp_avg"] = torch.ones(2, device="meta")
    with pytest.raises(
        ValueError, match=r"expected exp_avg on cpu, where its parameter is; got meta; make the optimizer"
    ):
        optimizer.step()


@pytest.mark.parametrize(
    ("group", "error", "words"),
    [
        (
            {"max_grad_norm": 1.0},
            ValueError,
            "max_grad_norm: expected one for all groups together; got 1.0 in a parameter",
        ),
        ({"clear": "zero"}, ValueError, "clear: expected one for all groups together"),
        ({"skip_nonfinite": False}, ValueError, "skip_nonfinite: expected one for all groups together"),
        ({"backend": "native"}, ValueError, "backend: expected one for all groups together"),
        ({"lr": "0.1"}, TypeError, "lr: expected a number or a 0-dim tensor; got str"),
        ({"betas": (0.9,)}, ValueError, "betas: expected two decay rates"),
        ({"differentiable": True}, ValueError, "differentiable: expected False; got True"),
    ],
)
def test_settings_that_a_group_cannot_have_are_refused(group, error, words):
    a, b = (torch.ones(1, requires_grad=True) for _ in range(2))
    with pytest.raises(error, match=words):
        AdamW([{"params": [a], **group}])
    optimizer = AdamW([a])
    with pytest.raises(error, match=words):
        optimizer.add_param_group({"params": [b], **group})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(("mine", "torchs"), [(AdamW, torch.optim.AdamW), (SGD, torch.optim.SGD)], ids=["AdamW", "SGD"])
def test_the_arguments_of_torchs_class_are_taken(mine, torchs):
    ours, theirs = (inspect.signature(cls).parameters.values() for cls in (mine, torchs))
    known = {p.name: p for p in ours}
    assert {p.name for p in theirs} <= set(known)
    positional = [p.name for p in theirs if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert [p.name for p in ours if p.kind is p.POSITIONAL_OR_KEYWORD] == positional
    defaults = {p.name: p.default for p in theirs if p.name not in ("params", "betas")}
    assert {name: known[name].default for name in defaults} == defaults


def test_torchs_calls_are_accepted():
    p = torch.ones(2, requires_grad=True)
    betas = (torch.tensor([[[0.9]]]), torch.tensor([[0.99]]))
    optimizer = AdamW([p], lr=torch.tensor(0.001), betas=betas, amsgrad=True, capturable=True, fused=True)
    assert optimizer.param_groups[0]["betas"] == (pytest.approx(0.9), pytest.approx(0.99))
    SGD([p], 0.1, 0.9, 0.0, 0.0, True, fused=True)
    for cls in (AdamW, SGD, LAMB):
        cls([{"params": [p], "foreach": True, "differentiable": False}], foreach=True, differentiable=False)
    LAMB([p], foreach=False, fused=True, capturable=True)
    with pytest.raises(ValueError, match="differentiable: expected False; got True"):
        LAMB([p], differentiable=True)
    assert copy.deepcopy(optimizer).param_groups[0]["amsgrad"] is True
