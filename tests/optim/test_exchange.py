"""State dicts: to torch's class of the same name and back, saved and loaded, without a cast."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from support.optim_cases import clones, paired, parameters, set_gradients

from gradalign.optim import LAMB, SGD, AdamW, exchange

CASES = {name: rest for name, *rest in paired()}
SEVERAL = (
    "AdamW-default",
    "AdamW-amsgrad",
    "Adam-decay",
    "SGD-default",
    "SGD-momentum",
    "SGD-dampening",
    "SGD-nesterov",
)
KINDS = {
    "AdamW": (AdamW, {"amsgrad": True}),
    "SGD": (SGD, {"momentum": 0.9, "dampening": 0.5}),
    "LAMB": (LAMB, {}),
}


def run(optimizer, params, steps, seed):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        set_gradients(generator, params)
        optimizer.step()


def saved(optimizer):
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("case", SEVERAL)
@pytest.mark.parametrize("form", ["fused", "foreach"])
def test_a_run_goes_on_in_torch(case, form, backend):
    ours, theirs, kwargs, further = CASES[case]
    a = parameters()
    mine = ours(a, backend=backend, **kwargs, **further)
    run(mine, a, 3, seed=1)
    b = clones(a)
    other = theirs(b, **{form: True}, **kwargs)
    other.load_state_dict(saved(mine))
    run(mine, a, 3, seed=2)
    run(other, b, 3, seed=2)
    for p, q in zip(a, b, strict=True):
        assert torch.allclose(p, q, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("case", SEVERAL)
@pytest.mark.parametrize("form", ["fused", "foreach"])
def test_a_run_of_torch_goes_on_here(case, form, backend):
    ours, theirs, kwargs, _ = CASES[case]  # whether decay is decoupled comes with the state
    a = parameters()
    other = theirs(a, **{form: True}, **kwargs)
    run(other, a, 3, seed=1)
    b = clones(a)
    mine = ours(b, lr=7.0, backend=backend)
    mine.load_state_dict(other.state_dict())
    run(other, a, 3, seed=2)
    run(mine, b, 3, seed=2)
    for p, q in zip(a, b, strict=True):
        assert torch.allclose(p, q, rtol=1e-6, atol=1e-7)


def test_there_and_back_keeps_every_value(backend):
    a = parameters()
    mine = AdamW(a, backend=backend, amsgrad=True)
    run(mine, a, 3, seed=1)
    other = torch.optim.AdamW(clones(a))
    other.load_state_dict(mine.state_dict())
    back = AdamW(a, backend=backend)
    back.load_state_dict(other.state_dict())
    for p in a:
        assert {k: v.tolist() for k, v in back.state[p].items()} == {k: v.tolist() for k, v in mine.state[p].items()}
    assert back.param_groups[0]["amsgrad"] is True


@pytest.mark.parametrize("options", [{}, {"master_weights": True}, {"stochastic_rounding": True}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_is_bit_identical(kind, dtype, options, backend):
    cls, kwargs = KINDS[kind]
    a = parameters(dtype)
    uninterrupted = cls(a, backend=backend, **kwargs, **options)
    run(uninterrupted, a, 3, seed=1)
    b = clones(a)
    resumed = cls(b, backend=backend, **kwargs, **options)
    resumed.load_state_dict(saved(uninterrupted))
    run(uninterrupted, a, 3, seed=2)
    run(resumed, b, 3, seed=2)
    for p, q in zip(a, b, strict=True):
        assert torch.equal(p, q)
        assert all(torch.equal(resumed.state[q][name], value) for name, value in uninterrupted.state[p].items())


def test_masters_and_moments_are_not_cast(backend):
    p = torch.randn(9).bfloat16().requires_grad_()
    optimizer = AdamW([p], master_weights=True, backend=backend)
    run(optimizer, [p], 2, seed=1)
    state = {name: value.clone() for name, value in optimizer.state[p].items()}
    again = AdamW([p], master_weights=True, backend=backend)
    again.load_state_dict(optimizer.state_dict())
    for name in ("exp_avg", "exp_avg_sq", "master"):
        assert again.state[p][name].dtype == torch.float32
        assert torch.equal(again.state[p][name], state[name])
        assert not torch.equal(state[name], state[name].bfloat16().float())  # a cast would have shown


def test_loaded_state_is_a_copy_and_hooks_see_plain_tensors(backend):
    p = torch.randn(3, requires_grad=True)
    optimizer = AdamW([p], backend=backend)
    run(optimizer, [p], 1, seed=1)
    again = AdamW(clones([p]), backend=backend)
    seen = []
    again.register_load_state_dict_pre_hook(lambda _, saved: seen.append(type(saved["state"][0]["exp_avg"])))
    again.register_load_state_dict_post_hook(lambda o: seen.append(type(next(iter(o.state.values()))["exp_avg"])))
    again.load_state_dict(optimizer.state_dict())
    assert seen == [torch.Tensor, torch.Tensor]
    again.param_groups[0]["params"][0].grad = torch.ones(3)
    before = optimizer.state[p]["exp_avg"].clone()
    again.step()
    assert torch.equal(optimizer.state[p]["exp_avg"], before)


def test_groups_keep_settings_that_torch_does_not_know(backend):
    params = [torch.randn(3).bfloat16().requires_grad_() for _ in range(2)]
    groups = [{"params": params[:1], "master_weights": True}, {"params": params[1:], "lr": 0.5}]
    mine = AdamW(groups, backend=backend)
    other = torch.optim.AdamW([{"params": c} for c in (clones(params[:1]), clones(params[1:]))], lr=0.25)
    mine.load_state_dict(other.state_dict())
    assert [group["master_weights"] for group in mine.param_groups] == [True, False]
    assert [group["lr"] for group in mine.param_groups] == [0.25, 0.25]
    assert mine.master(params[0]) is not None


def test_a_group_can_be_added_after_torchs_settings_were_loaded():
    a, b = (torch.ones(2, requires_grad=True) for _ in range(2))
    mine = AdamW([a])
    mine.load_state_dict(torch.optim.AdamW(clones([a]), foreach=True, lr=0.5).state_dict())
    mine.add_param_group({"params": [b]})
    mine.add_param_group({**mine.param_groups[0], "params": [torch.ones(2, requires_grad=True)]})
    assert [group["lr"] for group in mine.param_groups] == [0.5, 0.001, 0.5]


def test_a_first_step_of_sgd_is_still_first_after_skipped_ones():
    p = torch.ones(3, requires_grad=True)
    mine = SGD([p], momentum=0.9, dampening=0.5, lr=1.0)
    p.grad = torch.full((3,), torch.inf)
    mine.step()
    assert float(mine.state[p]["step"]) == 0
    q = clones([p])[0]
    other = torch.optim.SGD([q], momentum=0.9, dampening=0.5, lr=1.0)
    other.load_state_dict(mine.state_dict())
    for x, optimizer in ((p, mine), (q, other)):
        x.grad = torch.full((3,), 0.25)
        optimizer.step()
    assert torch.equal(p, q)
    assert torch.equal(p.detach(), torch.full((3,), 0.75))


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"]
)
@pytest.mark.parametrize("kind", KINDS)
def test_copies_go_on_by_themselves(kind, duplicate, backend):
    cls, kwargs = KINDS[kind]
    a = [torch.randn(5).bfloat16().requires_grad_()]
    options = {"max_grad_norm": 0.5, "clear": "zero", "skip_nonfinite": False, "master_weights": True}
    optimizer = cls(a, backend=backend, **kwargs, **options)
    run(optimizer, a, 2, seed=1)
    twin = duplicate(optimizer)
    b = twin.param_groups[0]["params"]
    assert b[0] is not a[0]
    assert (twin.max_grad_norm, twin.clear, twin.skip_nonfinite, twin.backend) == (0.5, "zero", False, backend)
    run(optimizer, a, 2, seed=2)
    run(twin, b, 2, seed=2)
    assert torch.equal(a[0], b[0])
    assert torch.equal(optimizer.master(a[0]), twin.master(b[0]))


def test_an_old_state_with_a_number_of_steps_loads():
    p = torch.randn(3, requires_grad=True)
    optimizer = AdamW([p])
    state = {0: {"step": 4, "exp_avg": torch.ones(3), "exp_avg_sq": torch.ones(3)}}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    assert optimizer.state[p]["step"].dtype == torch.float32
    assert float(optimizer.state[p]["step"]) == 4


def test_a_number_of_steps_is_loaded_exactly_in_every_default_dtype(default_dtype):
    p = torch.nn.Parameter(torch.zeros(3))
    optimizer = AdamW([p])
    p.grad = torch.ones(3)
    optimizer.step()
    old = optimizer.state_dict()
    old["state"][0]["step"] = 1001
    default_dtype(torch.bfloat16)
    optimizer.load_state_dict(old)
    assert optimizer.state[p]["step"].dtype == torch.float32
    assert float(optimizer.state[p]["step"]) == 1001


@pytest.mark.parametrize("kind", KINDS)
def test_entries_of_the_state_that_are_no_parameters_are_kept(kind):
    cls, kwargs = KINDS[kind]
    p = torch.ones(3, requires_grad=True)
    optimizer = cls([p], **kwargs)
    run(optimizer, [p], 1, seed=1)
    entries = {"a number": 5, "a flag": True, "a tensor": torch.ones(2), "a record": {"ema": torch.zeros(2), "n": None}}
    optimizer.state.update(entries)
    state_dict = optimizer.state_dict()
    again = cls(clones([p]), **kwargs)
    again.register_load_state_dict_pre_hook(lambda _, s: {**s, "state": {**s["state"], "from a hook": "text"}})
    again.load_state_dict(state_dict)
    for state, further in ((state_dict["state"], {}), (again.state, {"from a hook": "text"})):
        kept = {key: value for key, value in state.items() if isinstance(key, str)}
        assert kept.keys() == {**entries, **further}.keys()
        assert kept["a number"] == 5
        assert kept["a flag"] is True
        assert torch.equal(kept["a tensor"], torch.ones(2))
        assert torch.equal(kept["a record"]["ema"], torch.zeros(2))
        assert kept["a record"]["n"] is None
    assert again.state["from a hook"] == "text"
    run(again, again.param_groups[0]["params"], 1, seed=2)


@pytest.mark.parametrize("name", ["AdamW", "SGD", "LAMB"])
def test_state_of_another_shape_is_refused_and_nothing_is_loaded(name):
    options = {"momentum": 0.9} if name == "SGD" else {}

    def make(*shapes):
        params = [torch.nn.Parameter(torch.ones(shape)) for shape in shapes]
        optimizer = {"AdamW": AdamW, "SGD": SGD, "LAMB": LAMB}[name](params, lr=0.1, **options)
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
        return optimizer, params

    saved = make((8, 4), (4, 8))[0].state_dict()
    saved["param_groups"][0]["lr"] = 0.7
    optimizer, params = make((4, 8), (8, 4))
    before = {k: v.clone() for k, v in optimizer.state[params[0]].items() if isinstance(v, torch.Tensor)}
    with pytest.raises(ValueError, match=r"expected state of the shapes of the parameters, \(4, 8\) for number 0; got"):
        optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert all(torch.equal(optimizer.state[params[0]][k], v) for k, v in before.items())


@pytest.mark.parametrize("cls", [AdamW, LAMB])
def test_moments_without_their_number_of_steps_are_refused(cls):
    (p,) = clones([torch.ones(3)])
    optimizer = cls([p])
    p.grad = torch.ones(3)
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    del saved["state"][0]["step"]
    with pytest.raises(ValueError, match='expected the number of steps beside the moments.*without "step"'):
        optimizer.load_state_dict(saved)
    assert optimizer.state[p]["step"] == 1


COUNTING = {
    "SGD": lambda params: SGD(params, momentum=0.9),
    "RMSprop": torch.optim.RMSprop,
    "Adagrad": torch.optim.Adagrad,
}


@pytest.mark.parametrize("other", COUNTING)
@pytest.mark.parametrize("cls", [AdamW, LAMB])
def test_a_number_of_steps_without_their_moments_is_refused(cls, other):
    a = parameters()
    theirs = COUNTING[other](a)
    run(theirs, a, 1, seed=1)
    mine = cls(clones(a))
    words = 'expected the number of steps beside the moments.*without "exp_avg", "exp_avg_sq"'
    with pytest.raises(ValueError, match=words):
        mine.load_state_dict(theirs.state_dict())
    assert not mine.state


@pytest.mark.parametrize("amsgrad", [False, True])
def test_what_has_not_been_stepped_or_is_not_averaged_may_lack_its_moments(amsgrad, backend):
    p = torch.ones(3, requires_grad=True)
    first = AdamW([p], backend=backend)
    run(first, [p], 2, seed=1)
    saved = first.state_dict()
    if amsgrad:
        saved["param_groups"][0]["amsgrad"] = True
    else:
        saved["state"][0] = {"step": torch.zeros(())}
    again = AdamW(clones([p]), backend=backend)
    again.load_state_dict(saved)
    run(again, again.param_groups[0]["params"], 1, seed=2)
    (state,) = again.state.values()
    assert float(state["step"]) == (3 if amsgrad else 1)


@pytest.mark.parametrize("kind", KINDS)
def test_state_of_the_users_own_may_have_any_shape(kind):
    cls, kwargs = KINDS[kind]
    p = torch.ones(3, requires_grad=True)
    optimizer = cls([p], **kwargs)
    run(optimizer, [p], 1, seed=1)
    optimizer.state[p]["ema"] = torch.tensor(0.25)
    again = cls(clones([p]), **kwargs)
    again.load_state_dict(saved(optimizer))
    (state,) = again.state.values()
    assert torch.equal(state["ema"], torch.tensor(0.25))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_masters_that_are_loaded_are_none_of_wider_parameters(dtype):
    p = torch.ones(3).bfloat16().requires_grad_()
    optimizer = AdamW([p], master_weights=True)
    run(optimizer, [p], 1, seed=1)
    (wide,) = clones([p], dtype)
    again = AdamW([wide], master_weights=True)
    again.load_state_dict(saved(optimizer))
    assert again.master(wide) is None


def test_a_load_that_fails_in_between_leaves_the_optimizer_as_it_was(monkeypatch):
    params = [torch.nn.Parameter(torch.ones(3)) for _ in range(3)]
    optimizer = AdamW(params, lr=0.1)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][0]["lr"] = 0.7
    calls = []

    def place_state(*args):
        calls.append(args)
        if len(calls) == 5:
            raise MemoryError("no more")
        return placed(*args)

    placed = exchange.place_state
    monkeypatch.setattr(exchange, "place_state", place_state)
    with pytest.raises(MemoryError):
        optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] == 0.1
    before = [p.detach().clone() for p in params]
    optimizer.step()
    assert not any(torch.equal(p, b) for p, b in zip(params, before, strict=True))
