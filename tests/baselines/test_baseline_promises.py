"""The promises of DESIGN section 2, held by every baseline and by the estimator `exact`."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import torch
from support.baseline_comparison import filled, relative
from support.baseline_methods import AT_INNER_POINTS, BASELINES, ONE_AT_A_TIME
from support.fault_injection import FailingBackward, InjectedError, lines
from support.networks import Awkward, Counting, Spectral, make, plain_loop, same_state, state, trainable
from support.one_step import run

KINDS = (Awkward, Spectral, Counting)
BOTH_WAYS = [(name, "backward") for name in BASELINES] + [(name, "accumulate") for name in ONE_AT_A_TIME]


def small(kind, **options):
    """Three micro-batches of two rows."""
    return make(kind, k=3, rows=2, dtype=torch.float32, **options)


def same(tensors, others):
    return all(torch.equal(a, b) for a, b in zip(tensors, others, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "how"), BOTH_WAYS)
def test_after_a_step_parameters_buffers_and_stream_are_those_of_the_plain_loop(name, how, kind):
    model, loss_fn, batches = small(kind)
    twin, twin_loss, _ = small(kind)
    theta, streams = [p.detach().clone() for p in model.parameters()], []
    for step in (
        lambda: plain_loop(twin_loss, batches),
        lambda: run(BASELINES[name](model), loss_fn, batches, how),
    ):
        torch.manual_seed(5)
        random.seed(5)
        np.random.seed(5)
        step()
        streams.append((torch.rand(3).tolist(), random.random(), np.random.rand()))
    assert streams[0] == streams[1]
    assert same(model.parameters(), theta)
    assert list(model.state_dict()) == list(twin.state_dict())
    for (key, buffer), (_, expected) in zip(model.named_buffers(), twin.named_buffers(), strict=True):
        if name not in AT_INNER_POINTS or key.endswith(("count", "num_batches_tracked")):
            assert torch.equal(buffer, expected), key
        else:
            torch.testing.assert_close(buffer, expected, rtol=0.1, atol=0.1)
    assert relative(filled(model), filled(twin)) > 1e-4
    missing = [p.grad is None for p in trainable(model)]
    assert missing == [p.grad is None for p in trainable(twin)]


def failing(loss_fn, where, number, error):
    """The loss_fn, but for its call of the given number, which fails."""
    calls = itertools.count(1)

    def failing_once(batch):
        loss = loss_fn(batch)
        if next(calls) != number:
            return loss
        if where == "backward":
            return FailingBackward.apply(loss, error)
        raise error

    return failing_once


@pytest.mark.parametrize("error", [KeyboardInterrupt, InjectedError])
@pytest.mark.parametrize("where", ["loss_fn", "backward"])
@pytest.mark.parametrize("kind", [Spectral, Counting])
@pytest.mark.parametrize(("name", "how"), BOTH_WAYS)
def test_after_any_exception_all_is_as_before_the_call(name, how, kind, where, error):
    passes = 6 if "SAM" in name else 3
    for number in range(1, passes + 1):
        model, loss_fn, batches = small(kind)
        before, parameters = state(model), dict(model.named_parameters())
        method = BASELINES[name](model)
        with pytest.raises(error):
            run(method, failing(loss_fn, where, number, error), batches, how)
        assert same_state(model, before)
        assert all(p is parameters[key] and p.grad is None for key, p in model.named_parameters())
        assert not method.displaced
        assert method.num_steps == 0
    torch.manual_seed(3)
    run(method, loss_fn, batches, how)  # usable, and a failed step left nothing behind
    twin, twin_loss, _ = small(kind)
    torch.manual_seed(3)
    run(BASELINES[name](twin), twin_loss, batches, how)
    assert torch.equal(filled(model), filled(twin))


def step_until_failure(method, model, loss_fn, batches, before):
    for _ in range(4):
        before.update(state(model))
        method.backward(loss_fn, batches)
        model.zero_grad()


@pytest.mark.parametrize("name", BASELINES)
def test_an_exception_in_a_hook_or_a_second_derivative_too(name):
    for number in range(1, 5):
        model, loss_fn, batches = small(Counting)
        before, calls = {}, itertools.count(1)

        def hit(_, calls=calls, number=number):
            if next(calls) == number:
                raise InjectedError

        handle = model.linear.weight.register_hook(hit)
        method = BASELINES[name](model)
        with pytest.raises(InjectedError):
            step_until_failure(method, model, loss_fn, batches, before)
        handle.remove()
        assert same_state(model, before)
        assert all(p.grad is None for p in model.parameters())
        method.backward(loss_fn, batches)
        assert model.linear.weight.grad is not None


@pytest.mark.parametrize(("name", "how"), BOTH_WAYS)
def test_an_interrupt_at_any_line_of_the_package_leaves_theta(name, how):
    model, loss_fn, batches = small(Counting)
    method, before, parameters = (
        BASELINES[name](model, backend="reference"),
        state(model),
        dict(model.named_parameters()),
    )
    for _ in range(2):  # the first step looks at the graph of its loss, in lines of its own: the second is counted
        total = lines(lambda: run(method, loss_fn, batches, how))
        model.zero_grad()
    assert total > 200
    for interrupt_at in range(1, total + 1, max(1, total // 60)):
        model.zero_grad()
        model.load_state_dict(before)
        done = method.num_steps
        with pytest.raises(KeyboardInterrupt):
            lines(lambda: run(method, loss_fn, batches, how), interrupt_at)
        complete = method.num_steps == done + 1  # interrupted on the way out of the `with`: the step is whole
        assert all(p is parameters[key] for key, p in model.named_parameters()), interrupt_at
        assert same((p.detach() for p in model.parameters()), (before[key] for key in parameters)), interrupt_at
        assert complete or same_state(model, before), interrupt_at
        assert all(p.grad is None for p in model.parameters()) != complete, interrupt_at
        assert torch.is_grad_enabled()


@pytest.mark.parametrize("name", BASELINES)
def test_sum_of_losses_that_carry_their_share_is_the_mean(name):
    model, loss_fn, batches = make(Counting)
    mean = BASELINES[name](model).backward(loss_fn, batches)
    expected = filled(model)
    model.zero_grad()
    model.count.zero_()
    total = BASELINES[name](model).backward(lambda b: loss_fn(b) / len(batches), batches, reduction="sum")
    assert relative(filled(model), expected) < 1e-12
    assert float(total) == pytest.approx(float(mean), rel=1e-12)


@pytest.mark.parametrize("name", BASELINES)
def test_one_loss_scale_for_all_passes(name):
    model, loss_fn, batches = make(Counting)
    twin, twin_loss, _ = make(Counting)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    scaled, plain = BASELINES[name](model, scaler=scaler), BASELINES[name](twin)
    scaled.backward(loss_fn, batches)
    plain.backward(twin_loss, batches)
    assert relative(filled(model) / 2.0**12, filled(twin)) < 1e-12
    known = {key: value for key, value in plain.stats.as_dict().items() if value is not None}
    found = {key: value for key, value in scaled.stats.as_dict().items() if value is not None}
    assert found == pytest.approx(known, rel=1e-9)


@pytest.mark.parametrize("culprit", range(3))
@pytest.mark.parametrize("name", BASELINES)
def test_non_finite_values_reach_grad_and_the_scaler_skips(name, culprit):
    model, loss_fn, batches = small(Counting)
    batches[culprit] = (batches[culprit][0] * float("inf"), batches[culprit][1])
    before = state(model)
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu")
    BASELINES[name](model, scaler=scaler).backward(loss_fn, batches)
    assert not torch.isfinite(filled(model)).all()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(model.linear.weight, before["linear.weight"])
    assert scaler.get_scale() == 2.0**15


@pytest.mark.parametrize("name", BASELINES)
def test_auxiliaries_of_base_passes_come_back_in_order(name):
    model, loss_fn, batches = make(Counting)
    order = {id(batch): i for i, batch in enumerate(batches)}
    loss, aux = BASELINES[name](model).backward(lambda b: (loss_fn(b), order[id(b)]), batches, has_aux=True)
    assert aux == [0, 1, 2, 3]
    assert loss.dtype == torch.float64
    assert not loss.requires_grad


@pytest.mark.parametrize("name", [name for name in BASELINES if name != "exact"])
def test_another_backward_differentiates(name):
    model, loss_fn, batches = make(Counting)
    BASELINES[name](model).backward(loss_fn, batches)
    expected, calls = filled(model), []
    model.zero_grad()
    model.count.zero_()

    def backward(loss):
        calls.append(loss)
        loss.backward()

    BASELINES[name](model).backward(loss_fn, batches, backward=backward)
    assert torch.equal(filled(model), expected)
    # Where graphs of gradients are needed autograd makes them; only MAML's last backward is an ordinary one.
    assert len(calls) == {"SAM": 8, "m-SAM": 8, "Reptile": 4, "FOMAML": 4, "MAML": 1}[name]


@pytest.mark.parametrize("name", BASELINES)
def test_gradients_on_entry_are_refused_and_zeros_can_be_accepted(name):
    model, loss_fn, batches = make(Counting)
    method = BASELINES[name](model)
    method.backward(loss_fn, batches)
    expected = filled(model)
    with pytest.raises(ValueError, match=r"expected every .grad to be None on entry; .* optimizer.zero_grad()"):
        method.backward(loss_fn, batches)
    model.zero_grad(set_to_none=False)
    model.count.zero_()
    BASELINES[name](model, zeroed_grads=True).backward(loss_fn, batches)
    assert relative(filled(model), expected) < 1e-12


@pytest.mark.parametrize("name", BASELINES)
def test_backends_by_name(name):
    model, loss_fn, batches = small(Counting)
    with pytest.raises(ValueError, match="backend: expected one of"):
        BASELINES[name](model, backend="cuda-ish")
    found = []
    for backend in ("reference", "auto"):
        model.zero_grad()
        model.count.zero_()
        BASELINES[name](model, backend=backend).backward(loss_fn, batches)
        found.append(filled(model))
    assert relative(*found) < 1e-5


@pytest.mark.parametrize("name", ONE_AT_A_TIME)
def test_parameters_equal_theta_between_micro_batches(name):
    model, loss_fn, batches = small(Counting)
    theta = [p.detach().clone() for p in model.parameters()]
    with BASELINES[name](model).accumulate(3) as step:
        for batch in batches:
            step.backward(lambda batch=batch: loss_fn(batch))
            assert same(model.parameters(), theta)
    model.zero_grad()
    with (
        pytest.raises(ValueError, match="expected k = 3 calls of step.backward; got 1"),
        BASELINES[name](model).accumulate(3) as step,
    ):
        step.backward(lambda: loss_fn(batches[0]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", BASELINES)
def test_low_precision_is_close_to_float64(name, dtype):
    model, loss_fn, batches = make(Counting, dtype=dtype)
    wide, wide_loss, _ = make(Counting, dtype=dtype)
    wide.double()
    BASELINES[name](model).backward(loss_fn, batches)
    BASELINES[name](wide).backward(wide_loss, [(x.double(), y) for x, y in batches])
    assert all(p.grad.dtype == dtype for p in model.parameters())
    assert relative(filled(model).double(), filled(wide)) < (0.03 if dtype == torch.bfloat16 else 0.004)


class Constrained(torch.nn.Linear):
    """Rows no longer than 0.5, as layers of models of EEG keep them."""

    def forward(self, x):
        self.weight.data = torch.renorm(self.weight.data, p=2, dim=0, maxnorm=0.5)
        return super().forward(x)


class WrittenInPlace(torch.nn.Linear):
    def forward(self, x):
        with torch.no_grad():
            self.weight.clamp_(-0.3, 0.3)
        return super().forward(x)


@pytest.mark.parametrize("how", ["backward", "accumulate"])
@pytest.mark.parametrize("kind", [Constrained, WrittenInPlace, "max_norm"])
@pytest.mark.parametrize("name", AT_INNER_POINTS)
def test_a_forward_that_writes_its_weight_at_an_inner_point_is_refused(name, kind, how):
    if kind == "max_norm":
        model = torch.nn.Sequential(torch.nn.Embedding(12, 4, max_norm=0.5), torch.nn.Linear(4, 1))
        batches = [torch.tensor([3 * i, 3 * i + 1, 3 * i + 2]) for i in range(4)]
    else:
        model = torch.nn.Sequential(torch.nn.Linear(4, 4), kind(4, 1))
        batches = list(torch.randn(4, 3, 4))
    theta = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(RuntimeError, match=f"{name}: expected a forward that leaves parameters alone; .*; use SAM"):
        run(BASELINES[name](model), lambda x: model(x).square().mean(), batches, how)
    assert all(p.grad is None for p in model.parameters())
    written = [0] if kind == "max_norm" else [2]  # by the first pass, which is at theta
    assert [
        i for i, (p, t) in enumerate(zip(model.parameters(), theta, strict=True)) if not torch.equal(p, t)
    ] == written
