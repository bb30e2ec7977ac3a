from __future__ import annotations

import copy
import pickle
from collections import UserDict
from functools import partial

import pytest
import torch
from support.networks import Awkward, Counting, make, state, trainable
from torch import nn
from torch.nn import functional as F  # noqa: N812

import gradalign
from gradalign import AlignmentStats, GradAlign

OBJECTIVES = ("dot", "variance", "cosine", "norm")


def grads(model):
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()]


def assert_close(found, expected, rtol):
    largest = max(float(b.abs().max()) for b in expected if b is not None)
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * largest)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("normalize", ["none", "direction", "gradient"])
@pytest.mark.parametrize("difference", ["forward", "central"])
@pytest.mark.parametrize("telemetry", [False, True])
def test_accumulate_gives_the_gradients_of_backward(objective, normalize, difference, telemetry):
    model, loss_fn, batches = make(Awkward, k=8)
    before, results = state(model), []
    for one_by_one in (False, True):
        model.load_state_dict(before)
        model.zero_grad()
        torch.manual_seed(4)
        options = {"objective": objective, "normalize": normalize, "difference": difference, "telemetry": telemetry}
        aligner = GradAlign(model, 0.3, **options)
        if one_by_one:
            with aligner.accumulate(8) as step:
                losses = [step.backward(lambda batch=batch: loss_fn(batch)) for batch in batches]
            loss = torch.stack(losses).mean()
        else:
            loss = aligner.backward(loss_fn, batches)
        results.append((grads(model), float(loss), aligner.stats.as_dict()))
    assert_close(results[0][0], results[1][0], rtol=1e-9)
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-12)
    for name, value in results[0][2].items():
        assert results[1][2][name] == (None if value is None else pytest.approx(value, rel=1e-6))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("normalize", ["none", "direction", "gradient"])
@pytest.mark.parametrize("weight", [0.0, 0.3])
@pytest.mark.parametrize("k", [4, 6])
def test_sum_of_shares_equals_mean(objective, normalize, weight, k):
    model, loss_fn, batches = make(Counting, k=k)
    before = state(model)
    aligner = GradAlign(model, weight, objective=objective, normalize=normalize)
    mean = aligner.backward(loss_fn, batches)
    expected, stats = grads(model), aligner.stats.as_dict()
    model.zero_grad()
    model.load_state_dict(before)
    summed = aligner.backward(lambda batch: loss_fn(batch) / k, batches, reduction="sum")
    assert_close(grads(model), expected, rtol=1e-12)
    assert float(summed) == pytest.approx(float(mean), rel=1e-12)
    for name, value in aligner.stats.as_dict().items():
        assert value == (None if stats[name] is None else pytest.approx(stats[name], rel=1e-6))


def test_auxiliaries_come_back_in_order_from_the_base_passes():
    model, loss_fn, batches = make(Counting, k=8)
    aligner = GradAlign(model, 0.1)
    order = {id(batch): i for i, batch in enumerate(batches)}

    def with_aux(batch):
        return loss_fn(batch), (order[id(batch)], aligner.displaced)

    loss, aux = aligner.backward(with_aux, batches, has_aux=True)
    assert aux == [(i, False) for i in range(8)]
    assert float(loss) == pytest.approx(float(aligner.stats.loss))
    model.zero_grad()
    with aligner.accumulate(8, has_aux=True) as step:
        pairs = [step.backward(lambda batch=batch: with_aux(batch)) for batch in batches]
    assert [a for _, a in pairs] == aux


@pytest.mark.parametrize("container", [dict, UserDict, list])
def test_a_loss_fn_that_pops_from_its_batch_works(container):
    model = nn.Linear(3, 1)
    batches = [torch.randn(2, 3) for _ in range(4)]
    wrapped = [container([x]) if container is list else container({"x": x}) for x in batches]
    key = 0 if container is list else "x"
    GradAlign(model, 0.1).backward(lambda batch: model(batch.pop(key)).square().mean(), wrapped)
    popped = grads(model)
    model.zero_grad()
    GradAlign(model, 0.1).backward(lambda x: model(x).square().mean(), batches)
    assert_close(popped, grads(model), rtol=0)
    assert all(len(batch) == 1 for batch in wrapped)


def test_unreached_parameters_keep_none_and_late_ones_are_counted_as_zero_before():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk, self.first, self.second, self.third = (nn.Linear(3, 3) for _ in range(4))

        def forward(self, x, head):
            return getattr(self, head)(torch.tanh(self.trunk(x)))

    model = Heads().double()
    batches = [(torch.randn(4, 3, dtype=torch.float64), head) for head in ["first"] * 3 + ["second"]]

    def loss_fn(batch):
        x, head = batch
        return model(x, head).square().mean()

    for objective in OBJECTIVES:
        for normalize in ("none", "direction", "gradient"):
            for telemetry in (False, True):
                model.zero_grad()
                options = {"objective": objective, "normalize": normalize, "telemetry": telemetry}
                GradAlign(model, 0.1, **options).backward(loss_fn, batches)
                assert model.third.weight.grad is None
                assert model.second.weight.grad is not None
                assert model.first.weight.grad is not None


def test_zeroed_grads_are_added_to_in_place():
    for objective in OBJECTIVES:
        for telemetry in (False, True):
            model, loss_fn, batches = make(Counting, k=4)
            twin, twin_loss, _ = make(Counting, k=4)
            optimizer = torch.optim.SGD(model.parameters())
            for p in model.parameters():
                p.grad = torch.ones_like(p)
            optimizer.zero_grad(set_to_none=False)
            given = [p.grad for p in trainable(model)]
            options = {"objective": objective, "telemetry": telemetry}
            GradAlign(model, 0.1, zeroed_grads=True, **options).backward(loss_fn, batches)
            GradAlign(twin, 0.1, **options).backward(twin_loss, batches)
            assert all(p.grad is g for p, g in zip(trainable(model), given, strict=True))
            assert_close(grads(model), grads(twin), rtol=1e-12)


def test_scaled_dot_product_attention_trains_where_double_backward_cannot():
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
    batches = list(torch.randn(4, 2, 5, 8))

    def loss_fn(x):
        q = model(x)
        return F.scaled_dot_product_attention(q, q, q).square().mean()

    aligner = GradAlign(model, 0.1)
    aligner.backward(loss_fn, batches)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    assert float(aligner.stats.dot) != 0


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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_cast_of_inputs_or_to_a_wider_dtype_is_no_autocast(dtype):
    model = nn.Linear(3, 3)
    aligner = GradAlign(model, 0.1)
    scale = torch.ones(3, requires_grad=True)

    def loss_fn(x):
        y = F.linear(x.to(dtype), model.weight.to(dtype), model.bias.to(dtype))
        return y.square().mean() + scale.bfloat16().sum() + y.bfloat16().sum()

    aligner.backward(loss_fn, list(torch.randn(4, 5, 3)))
    assert aligner.stats.radius == 0.01


@pytest.mark.parametrize("estimator", ["split", "prefix", "leave_one_out", "momentum", "exact"])
@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_a_loss_that_trains_parameters_of_another_module_is_refused(estimator, weight):
    encoder, head = nn.Linear(3, 4), nn.Linear(4, 1)
    batches = list(torch.randn(4, 5, 3))

    def loss_fn(x):
        return head(encoder(x).tanh()).square().mean()

    with pytest.raises(ValueError, match=r"trains 2 that are not in it.*model=\[encoder, head\]"):
        GradAlign(encoder, weight, estimator=estimator).backward(loss_fn, batches)
    with pytest.raises(ValueError, match="trains 4 that are not in it"):
        GradAlign(copy.deepcopy(encoder), weight, estimator=estimator).backward(loss_fn, batches)
    assert all(p.grad is None for p in (*encoder.parameters(), *head.parameters()))
    GradAlign([encoder, head], weight, estimator=estimator).backward(loss_fn, batches)
    encoder.zero_grad()
    head.requires_grad_(False)
    inputs = [x.requires_grad_() for x in batches]  # leaves that are no parameters are nobody's business
    GradAlign(encoder, weight, estimator=estimator).backward(loss_fn, inputs)


def test_autocast_around_the_call_does_not_cache_undisplaced_weights():
    model = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 1))
    batches = list(torch.randn(4, 16, 8))
    found = []
    for where in ("inside", "outside"):
        model.zero_grad()
        aligner = GradAlign(model, 10.0, radius=0.5)

        def loss_fn(x, where=where):
            with torch.autocast("cpu", torch.bfloat16, enabled=True, cache_enabled=where == "outside"):
                return model(x).float().square().mean()

        with torch.autocast("cpu", torch.bfloat16, enabled=where == "outside"):
            aligner.backward(loss_fn, batches)
        found.append(grads(model))
    assert_close(found[0], found[1], rtol=1e-6)


def test_a_custom_backward_and_a_dividing_accelerator():
    class Accelerator:
        gradient_accumulation_steps = 3
        scaler = None

        def backward(self, loss):
            (loss / self.gradient_accumulation_steps).backward()

    model, loss_fn, batches = make(Counting, k=4)
    before = state(model)
    aligner = GradAlign(model, 0.3)
    aligner.backward(loss_fn, batches)
    expected = grads(model)
    for backward in (torch.Tensor.backward, Accelerator().backward, partial(partial(Accelerator().backward))):
        model.zero_grad()
        model.load_state_dict(before)
        aligner.backward(loss_fn, batches, backward=backward)
        assert_close(grads(model), expected, rtol=1e-12)


def test_several_models_and_parameters_counted_once():
    first, second = nn.Linear(3, 4).double(), nn.Linear(4, 1).double()
    batches = list(torch.randn(4, 5, 3, dtype=torch.float64))

    def loss_fn(x):
        return second(torch.tanh(first(x))).square().mean()

    GradAlign([first, second, first], 0.3).backward(loss_fn, batches)
    several = [p.grad.clone() for p in (*first.parameters(), *second.parameters())]
    both = nn.ModuleList([first, second])
    both.zero_grad()
    GradAlign(both, 0.3, params=[*both.parameters(), *both.parameters()]).backward(loss_fn, batches)
    assert_close([p.grad for p in both.parameters()], several, rtol=1e-12)


def test_state_dict_carries_the_step():
    model, loss_fn, batches = make(Counting, k=4)
    seen = []

    def weight(step):
        seen.append(step)
        return 0.1

    aligner = GradAlign(model, weight)
    for _ in range(3):
        aligner.backward(loss_fn, batches)
        model.zero_grad()
    other = GradAlign(model, weight)
    other.load_state_dict(aligner.state_dict())
    other.backward(loss_fn, batches)
    assert seen == [0, 1, 2, 3]
    assert isinstance(other.stats, AlignmentStats)
    with pytest.raises(ValueError, match="expected the state of a GradAlign"):
        other.load_state_dict({"wrong": 1})


def test_displacement_cosine_is_reported_for_low_precision():
    torch.manual_seed(0)
    model = nn.Linear(300, 300).to(torch.bfloat16)
    aligner = GradAlign(model, 0.1, radius=0.003)
    batches = list(torch.randn(4, 16, 300, dtype=torch.bfloat16))
    before = state(model)
    aligner.backward(lambda x: model(x).float().square().mean(), batches)
    assert 0 < float(aligner.stats.displacement_cosine) < 0.95
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


SIMPLE = {"weight": 0.1}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"objective": "dots"},
            ValueError,
            "objective: expected one of 'cosine', 'dot', 'norm', 'variance'; got 'dots'",
        ),
        ({"normalize": "unit"}, ValueError, "normalize: expected one of"),
        ({"estimator": "all"}, ValueError, "estimator: expected one of"),
        ({"difference": "backward"}, ValueError, "difference: expected one of"),
        ({"backend": "cuda"}, ValueError, "backend: expected one of"),
        ({"radius": float("nan")}, ValueError, "radius: expected a finite number above 0"),
        ({"radius": -0.1}, ValueError, "radius: expected a finite number above 0"),
        ({"radius": 0}, ValueError, "radius: expected a finite number above 0"),
        ({"radius": "big"}, TypeError, "radius: expected a number; got str"),
        ({"weight": float("nan")}, ValueError, "weight: expected a finite number"),
        ({"weight": None}, TypeError, "weight: expected a number"),
        ({"weight": True}, TypeError, "weight: expected a number"),
        ({"every": 0}, ValueError, "every: expected an integer of at least 1"),
        ({"every": 1.5}, TypeError, "every: expected an integer"),
        ({"probe_fraction": 0}, ValueError, "probe_fraction: expected a number above 0 and at most 1"),
        ({"probe_fraction": 1.5}, ValueError, "probe_fraction: expected a number above 0 and at most 1"),
        ({"params": []}, ValueError, "params: expected at least one parameter"),
        ({"params": [nn.Parameter(torch.zeros(2))]}, ValueError, "params: expected trainable parameters of the model"),
        ({"params": ["head"]}, TypeError, "params: expected parameters of the model; got str"),
    ],
)
def test_bad_options_are_told_expected_and_got(options, error, message):
    with pytest.raises(error, match=message):
        GradAlign(nn.Linear(2, 1), **(SIMPLE | options))


def test_bad_models_are_told_expected_and_got():
    with pytest.raises(ValueError, match="expected a model with trainable parameters"):
        GradAlign(nn.Linear(2, 1).requires_grad_(False), 0.1)
    with pytest.raises(TypeError, match="model: expected an nn.Module or several; got int"):
        GradAlign(3, 0.1)
    with pytest.raises(TypeError, match="model: expected an nn.Module or several; got Parameter"):
        GradAlign(list(nn.Linear(2, 1).parameters()), 0.1)
    with pytest.raises(TypeError, match=r"expected real parameters; got torch.complex64"):
        GradAlign(nn.Linear(2, 1, dtype=torch.complex64), 0.1)
    with pytest.raises(ValueError, match="expected initialised parameters; got a lazy one"):
        GradAlign(nn.LazyLinear(2), 0.1)


def test_a_weight_that_turns_bad_is_an_error_before_anything_happens():
    model, loss_fn, batches = make(Counting)
    with pytest.raises(ValueError, match=r"weight\(step\): expected a finite number; got nan"):
        GradAlign(model, lambda step: float("nan")).backward(loss_fn, batches)
    assert grads(model) == [None, None]


@pytest.mark.parametrize("how", ["backward", "accumulate"])
def test_grad_not_none_on_entry_names_zero_grad_and_is_kept(how):
    model, loss_fn, batches = make(Counting)
    model.linear.bias.grad = torch.ones_like(model.linear.bias)
    aligner = GradAlign(model, 0.1)
    with pytest.raises(ValueError, match=r"optimizer\.zero_grad\(\)"):
        aligner.backward(loss_fn, batches) if how == "backward" else aligner.accumulate(4).__enter__()
    assert torch.equal(model.linear.bias.grad, torch.ones_like(model.linear.bias))


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        ([], ValueError, "micro_batches: expected at least 2"),
        ([torch.randn(2, 6)], ValueError, "micro_batches: expected at least 2.*; got 1"),
        (torch.randn(8, 6), TypeError, "micro_batches: expected a list of micro-batches; got Tensor.*gradalign.chunk"),
        ({"x": torch.randn(8, 6)}, TypeError, "micro_batches: expected a list of micro-batches; got dict"),
        (3, TypeError, "micro_batches: expected a list"),
    ],
)
def test_bad_micro_batches(batches, error, message):
    model = nn.Linear(6, 1)
    with pytest.raises(error, match=message):
        GradAlign(model, 0.1).backward(lambda x: model(x).mean(), batches)


@pytest.mark.parametrize(
    ("make_loss", "error", "message"),
    [
        (lambda y: y, ValueError, r"expected a scalar tensor; got shape \(2, 3\)"),
        (lambda y: float(y.mean().detach()), TypeError, "expected a scalar tensor; got float"),
        (lambda y: (y.mean(), y), TypeError, "expected a scalar tensor; got tuple.*has_aux"),
        (lambda y: y.mean().detach(), ValueError, "expected a loss with a graph"),
        (lambda y: y.mean().to(torch.complex64), TypeError, "expected a real floating-point loss"),
    ],
)
@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_a_loss_that_is_no_scalar_with_a_graph(make_loss, error, message, weight):
    model, _, batches = make(Counting)
    before = state(model)
    with pytest.raises(error, match=message):
        GradAlign(model, weight).backward(lambda batch: make_loss(model(batch[0])[:2]), batches)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert grads(model) == [None, None]


@pytest.mark.parametrize("retain", [False, True])
@pytest.mark.parametrize("number", [1, 3, 4, 5])
def test_a_loss_fn_that_calls_backward(retain, number):
    model, loss_fn, batches = make(Counting)
    calls = 0

    def bad(batch):
        nonlocal calls
        calls += 1
        loss = loss_fn(batch)
        if calls == number:
            loss.backward(retain_graph=retain)
        return loss

    with pytest.raises(RuntimeError, match="expected a function that computes the loss and leaves .grad alone"):
        GradAlign(model, 0.1).backward(bad, batches)
    assert grads(model) == [None, None]


def test_has_aux_wants_a_pair():
    model, loss_fn, batches = make(Counting)
    with pytest.raises(TypeError, match=r"expected \(loss, aux\) with has_aux=True; got Tensor"):
        GradAlign(model, 0.1).backward(loss_fn, batches, has_aux=True)


@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_sparse_gradients_are_refused(weight):
    model = nn.Embedding(5, 2, sparse=True)
    with pytest.raises(TypeError, match="expected dense gradients; got torch.sparse_coo"):
        GradAlign(model, weight).backward(lambda i: model(i).square().mean(), [torch.tensor([i]) for i in range(4)])
    assert model.weight.grad is None


def test_hooks_that_consume_gradients_are_refused():
    model, loss_fn, batches = make(Counting)
    handle = model.linear.weight.register_post_accumulate_grad_hook(lambda p: None)
    with pytest.raises(ValueError, match="expected parameters without post-accumulate-grad hooks"):
        GradAlign(model, 0.1).backward(loss_fn, batches)
    handle.remove()
    GradAlign(model, 0.1).backward(loss_fn, batches)


def test_a_missing_backend_is_an_error_that_lists_what_is_there():
    with pytest.raises(RuntimeError, match=r'backend "triton": .*available here: .*reference'):
        GradAlign(nn.Linear(2, 1), 0.1, backend="triton")


def test_reduction_and_scaler_are_checked():
    model, loss_fn, batches = make(Counting)
    with pytest.raises(ValueError, match="reduction: expected one of 'mean', 'sum'; got 'max'"):
        GradAlign(model, 0.1).backward(loss_fn, batches, reduction="max")

    class Accelerator:
        scaler = torch.amp.GradScaler("cpu")

        def backward(self, loss):
            loss.backward()

    with pytest.raises(ValueError, match="scaler: expected one GradScaler"):
        GradAlign(model, 0.1, scaler=torch.amp.GradScaler("cpu")).backward(
            loss_fn, batches, backward=Accelerator().backward
        )


def test_accumulate_counts_its_calls():
    model, loss_fn, batches = make(Counting)
    aligner, before = GradAlign(model, 0.1), state(model)
    with pytest.raises(ValueError, match="k: expected an integer of at least 2; got 1"):
        aligner.accumulate(1)

    def few():
        with aligner.accumulate(4) as step:
            for batch in batches[:3]:
                step.backward(lambda batch=batch: loss_fn(batch))

    with pytest.raises(ValueError, match=r"expected k = 4 calls of step.backward; got 3; .grad is None"):
        few()
    assert grads(model) == [None, None]
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    with aligner.accumulate(4) as step:
        for batch in batches:
            step.backward(lambda batch=batch: loss_fn(batch))
        complete = grads(model)
        with pytest.raises(ValueError, match="got one more"):
            step.backward(lambda: loss_fn(batches[0]))
    assert_close(grads(model), complete, rtol=0)
    with pytest.raises(RuntimeError, match="expected a call inside"):
        step.backward(lambda: loss_fn(batches[0]))


def foreign_backward(model, optimizer, loss):
    loss.backward()


def foreign_step(model, optimizer, loss):
    optimizer.step()


def foreign_zero(model, optimizer, loss):
    optimizer.zero_grad()


def foreign_clip(model, optimizer, loss):
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)


@pytest.mark.parametrize(
    ("foreign", "changed"),
    [(foreign_backward, ".grad"), (foreign_step, "parameters"), (foreign_zero, ".grad"), (foreign_clip, ".grad")],
)
@pytest.mark.parametrize("at", [1, 3])
def test_what_is_done_between_the_micro_batches_of_accumulate_is_noticed(foreign, changed, at):
    model, loss_fn, batches = make(Counting)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    aligner = GradAlign(model, 0.1)

    def step_with_a_slip():
        with aligner.accumulate(4) as step:
            for i, batch in enumerate(batches):
                if i == at:
                    foreign(model, optimizer, loss_fn(batch))
                    theta.update({name: p.clone() for name, p in model.named_parameters()})
                step.backward(lambda batch=batch: loss_fn(batch))

    theta = {}
    with pytest.raises(RuntimeError, match=f"to be left alone between.*got changed {changed};"):
        step_with_a_slip()
    assert grads(model) == [None, None]
    assert all(torch.equal(p, theta[name]) for name, p in model.named_parameters())
    aligner.backward(loss_fn, batches)


def test_likely_slips_are_told_what_to_pass():
    model, loss_fn, batches = make(Counting)
    aligner = GradAlign(model, 0.1)
    with pytest.raises(TypeError, match="loss_fn: expected a function that computes the loss; got Tensor"):
        aligner.backward(loss_fn(batches[0]), batches)
    with pytest.raises(TypeError, match="loss_fn: expected a function that computes the loss; got list"):
        aligner.backward(batches, loss_fn)
    with aligner.accumulate(4) as step:
        with pytest.raises(TypeError, match=r"closure: .*got Tensor; pass lambda: loss_fn\(micro_batch\)"):
            step.backward(loss_fn(batches[0]).detach())
        for batch in batches:  # nothing was lost
            step.backward(lambda batch=batch: loss_fn(batch))
    model.zero_grad()
    aligner.backward(loss_fn, batches, tasks=(name for name in "abab"))
    assert aligner.stats.tasks == ("a", "b")
    with pytest.raises(TypeError, match="load_state_dict: expected the state_dict of a GradAlign; got NoneType"):
        aligner.load_state_dict(None)
    with pytest.raises(TypeError, match="scaler: expected a torch.amp.GradScaler or None; got str"):
        GradAlign(model, 0.1, scaler="x")
    for name in ("telemetry", "zeroed_grads"):
        with pytest.raises(TypeError, match=f"{name}: expected True or False; got 'x'"):
            GradAlign(model, 0.1, **{name: "x"})


def test_options_that_mean_nothing_to_an_estimator_are_refused():
    model = nn.Linear(3, 1)
    with pytest.raises(ValueError, match="probes: expected 'last' with estimator \"prefix\""):
        GradAlign(model, 0.1, estimator="prefix", probes="rotate")
    with pytest.raises(ValueError, match="gradients: expected 'device' with estimator \"split\""):
        GradAlign(model, 0.1, gradients="host")


def test_wrapped_modules_are_found_inside_others():
    class FullyShardedDataParallel(nn.Module):
        pass

    with pytest.raises(TypeError, match="got FullyShardedDataParallel"):
        GradAlign(nn.Sequential(nn.Linear(3, 1), FullyShardedDataParallel()), 0.1)


def test_an_aligner_can_be_copied_and_pickled():
    model, loss_fn, batches = make(Counting)
    aligner = GradAlign(model, 0.1, estimator="prefix")
    aligner.backward(loss_fn, batches)
    other = pickle.loads(pickle.dumps(aligner))
    model.zero_grad()
    aligner.backward(loss_fn, batches)
    assert (other.num_steps, aligner.num_steps) == (1, 2)


def test_an_error_swallowed_inside_accumulate_does_not_make_a_step():
    model, loss_fn, batches = make(Counting)
    aligner = GradAlign(model, 0.1)

    def swallow():
        with aligner.accumulate(4) as step:
            step.backward(lambda: loss_fn(batches[0]))
            with pytest.raises(ZeroDivisionError):
                step.backward(lambda: 1 / 0)
            with pytest.raises(RuntimeError, match="after a failed one"):
                step.backward(lambda: loss_fn(batches[1]))

    with pytest.raises(ValueError, match="expected k = 4 calls"):
        swallow()
    assert grads(model) == [None, None]


def test_a_chunked_batch_trains_like_its_micro_batches():
    model = nn.Linear(6, 1).double()
    x = torch.randn(16, 6, dtype=torch.float64)
    aligner = GradAlign(model, 0.1)
    aligner.backward(lambda part: model(part["x"]).square().mean(), gradalign.chunk({"x": x}, 8))
    expected = grads(model)
    model.zero_grad()
    aligner.backward(lambda part: model(part).square().mean(), list(x.view(8, 2, 6)))
    assert_close(grads(model), expected, rtol=0)


def test_before_replay_moves_the_weight_and_counts_the_step():
    model, loss_fn, batches = make(Counting)
    aligner = GradAlign(model, lambda step: 0.1 * (step + 1), every=2)
    with pytest.raises(RuntimeError, match="before_replay: expected a captured step"):
        aligner.before_replay()
    aligner.backward(loss_fn, batches)
    cell = aligner._weight_cell
    assert [(aligner.before_replay(), round(float(cell), 6)) for _ in range(3)] == [
        (False, 0.0),
        (True, 0.6),
        (False, 0.0),
    ]
    assert aligner.num_steps == 4
    model.zero_grad()
    aligner.backward(loss_fn, batches)
    assert aligner._weight_cell is cell
    assert float(cell) == pytest.approx(1.0)
