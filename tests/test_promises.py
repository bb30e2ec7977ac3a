"""The promises of DESIGN section 2, numbered as there; each test would fail without the promise."""

from __future__ import annotations

import copy
import random
import signal
import threading
import time

import numpy as np
import pytest
import torch
from support.fault_injection import FailingBackward, InjectedError, lines
from support.networks import Awkward, Counting, Spectral, make, plain_loop, same_state, state, trainable
from support.one_step import run
from torch import nn

import gradalign

KINDS = (Awkward, Spectral, Counting)
OBJECTIVES = ("dot", "variance", "cosine", "norm")


def same_grads(a, b):
    pairs = [(p.grad, q.grad) for p, q in zip(a.parameters(), b.parameters(), strict=True)]
    return all((g is None and h is None) or (g is not None and torch.equal(g, h)) for g, h in pairs)


def run_at_theta(aligner, model, loss_fn, batches, how):
    """One step; between the micro-batches of `accumulate` the parameters are as before."""
    theta = [p.detach().clone() for p in model.parameters()]

    def check():
        assert all(torch.equal(p, t) for p, t in zip(model.parameters(), theta, strict=True))

    return run(aligner, loss_fn, batches, how, check)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("telemetry", [False, True])
@pytest.mark.parametrize("how", ["backward", "accumulate"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [4, 7])
def test_1_weight_0_is_the_plain_loop_bit_for_bit(kind, how, telemetry, dtype, k):
    model, loss_fn, batches = make(kind, k=k, dtype=dtype)
    twin, twin_loss, _ = make(kind, k=k, dtype=dtype)
    torch.manual_seed(5)
    plain_loop(twin_loss, batches)
    expected_stream = torch.rand(3)
    torch.manual_seed(5)
    aligner = gradalign.GradAlign(model, weight=0, telemetry=telemetry)
    run_at_theta(aligner, model, loss_fn, batches, how)
    assert torch.equal(torch.rand(3), expected_stream)
    assert same_grads(model, twin)
    assert same_state(model, state(twin))


def test_1_steps_with_a_scheduled_weight_of_0_and_steps_between_every_nth_run_no_displaced_pass():
    model, loss_fn, batches = make(Awkward)
    aligner = gradalign.GradAlign(model, weight=lambda step: 0.0 if step == 1 else 1.0, every=3)
    passes = []
    for _ in range(7):
        aligner.backward(loss_fn, batches)
        passes.append(aligner.stats.passes)
        model.zero_grad()
    assert passes == [5, 4, 4, 5, 4, 4, 5]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("difference", ["forward", "central"])
@pytest.mark.parametrize("how", ["backward", "accumulate"])
@pytest.mark.parametrize("kind", KINDS)
def test_2_and_4_after_a_step_parameters_buffers_and_stream_are_those_of_the_plain_loop(
    kind, how, objective, difference
):
    model, loss_fn, batches = make(kind, k=8, dtype=torch.float32)
    twin, twin_loss, _ = make(kind, k=8, dtype=torch.float32)
    streams = []
    for step in (lambda: plain_loop(twin_loss, batches), None):
        torch.manual_seed(5)
        random.seed(5)
        np.random.seed(5)
        if step is None:
            aligner = gradalign.GradAlign(model, 0.3, objective=objective, difference=difference)
            run_at_theta(aligner, model, loss_fn, batches, how)
        else:
            step()
        streams.append((torch.rand(3).tolist(), random.random(), np.random.rand()))
    assert streams[0] == streams[1]
    assert same_state(model, state(twin))
    assert not same_grads(model, twin)


def run_failing(model, loss_fn, batches, options, how, place, error=KeyboardInterrupt):
    """Run a step that fails in the given place of its pass of the given number; returns the state before, and the aligner."""
    calls = 0
    where, number = place

    def failing(batch):
        nonlocal calls
        calls += 1
        if calls != number:
            return loss_fn(batch)
        if where == "loss_fn":
            loss_fn(batch)
            raise error
        loss = loss_fn(batch)
        if where == "backward":
            return FailingBackward.apply(loss, error)
        raise AssertionError(where)

    hook = None
    if where == "hook":

        def hit(*_):
            nonlocal calls
            calls += 1
            if calls == number:
                raise error

        hook = (
            model.linear.weight.register_hook(hit) if hasattr(model, "linear") else model.head.weight.register_hook(hit)
        )
    before = state(model)
    aligner = gradalign.GradAlign(model, 0.3, **options)
    with pytest.raises(error):
        run_at_theta(aligner, model, loss_fn if hook else failing, batches, how)
    if hook:
        hook.remove()
    return before, aligner


@pytest.mark.parametrize("how", ["backward", "accumulate"])
@pytest.mark.parametrize("objective", ["dot", "variance"])
@pytest.mark.parametrize("where", ["loss_fn", "backward", "hook"])
@pytest.mark.parametrize(
    ("number", "error"),
    [(1, InjectedError), (5, KeyboardInterrupt), (7, KeyboardInterrupt), (8, InjectedError), (10, KeyboardInterrupt)],
)
def test_2_after_any_exception_all_is_as_before_the_call(number, where, objective, how, error):
    for kind in (Awkward, Counting):
        model, loss_fn, batches = make(kind, k=8, dtype=torch.float32)
        options = {"objective": objective, "telemetry": number % 2 == 0}
        before, aligner = run_failing(model, loss_fn, batches, options, how, (where, number), error)
        assert same_state(model, before)
        assert all(p.grad is None for p in model.parameters())
        assert not aligner.displaced
        torch.manual_seed(3)
        aligner.backward(loss_fn, batches)  # the aligner is usable, and a failed step left nothing behind
        assert aligner.num_steps == 1
        twin, twin_loss, _ = make(kind, k=8, dtype=torch.float32)
        torch.manual_seed(3)
        gradalign.GradAlign(twin, 0.3, **options).backward(twin_loss, batches)
        assert same_grads(model, twin)


def test_2_an_exception_leaves_the_random_stream_where_it_found_it():
    model, loss_fn, batches = make(Awkward, k=8)
    seen = []

    def failing(batch):
        loss = loss_fn(batch)
        seen.append(torch.get_rng_state())
        if len(seen) == 8:
            raise InjectedError
        return loss

    with pytest.raises(InjectedError):
        gradalign.GradAlign(model, 0.3).backward(failing, batches)
    assert torch.equal(torch.get_rng_state(), seen[-1])


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("how", ["backward", "accumulate"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"difference": "central"},
        {"objective": "variance", "difference": "central"},
        {"objective": "cosine", "normalize": "gradient"},
        {"normalize": "gradient", "telemetry": True},
    ],
    ids=str,
)
def test_2_an_interrupt_at_any_line_of_the_package_leaves_theta(options, how, backend):
    model, loss_fn, batches = make(Counting, k=3, dtype=torch.float32, rows=2)
    aligner = gradalign.GradAlign(model, 0.3, backend=backend, **options)
    before = state(model)

    def step():
        run(aligner, loss_fn, batches, how)

    for _ in range(2):  # the first step makes what later ones find, in lines of its own: the second is counted
        total = lines(step)
        model.zero_grad()
        model.load_state_dict(before)
    assert total > 300
    for interrupt_at in range(1, total + 1, max(1, total // 400)):
        done = aligner.num_steps
        with pytest.raises(KeyboardInterrupt):
            lines(step, interrupt_at)
        assert same_state(model, before) or aligner.num_steps > done, interrupt_at
        complete = aligner.num_steps == done + 1  # interrupted on the way out of the `with`: the step is whole
        assert all(p.grad is None for p in trainable(model)) != complete, interrupt_at
        assert not complete or how == "accumulate"
        model.zero_grad()
        model.load_state_dict(before)
        assert torch.is_grad_enabled()


class Pieces(nn.Module):
    """A projection that was stored in one tensor, taken apart: its parameters share memory's version counter."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = map(nn.Parameter, torch.randn(12, 4).chunk(3))

    def forward(self, x):
        return nn.functional.scaled_dot_product_attention(x @ self.q.t(), x @ self.k.t(), x @ self.v.t())


@pytest.mark.parametrize(
    ("options", "how"),
    [
        ({}, "backward"),
        ({"objective": "variance", "difference": "central"}, "accumulate"),
        ({"objective": "variance", "estimator": "leave_one_out"}, "backward"),
        ({"estimator": "momentum"}, "backward"),
    ],
    ids=str,
)
def test_2_an_interrupt_leaves_theta_where_parameters_are_pieces_of_one_tensor(options, how):
    torch.manual_seed(0)
    model, batches = Pieces(), list(torch.randn(3, 2, 5, 4))
    aligner = gradalign.GradAlign(model, 0.3, backend="reference", **options)
    before = state(model)

    def step():
        run(aligner, lambda x: model(x).square().mean(), batches, how)

    for _ in range(2):
        total = lines(step)
        model.zero_grad()
        model.load_state_dict(before)
    for interrupt_at in range(1, total + 1, max(1, total // 200)):
        with pytest.raises(KeyboardInterrupt):
            lines(step, interrupt_at)
        assert same_state(model, before), interrupt_at
        model.zero_grad()


def test_2_an_interrupt_where_hooks_come_and_go_leaves_none():
    model, loss_fn, batches = make(Counting, k=3, dtype=torch.float32, rows=2)
    aligner = gradalign.GradAlign(model, 0.3)
    functions = {"_watching_autocast", "_hooked_models", "_note_autocast", "forget"}

    def step():
        aligner.backward(loss_fn, batches)

    total = lines(step, functions=functions)
    assert total > 10
    for interrupt_at in range(1, total + 1):
        model.zero_grad()
        with pytest.raises(KeyboardInterrupt):
            lines(step, interrupt_at, functions)
        assert not model._forward_pre_hooks, interrupt_at


@pytest.fixture
def interruptible():
    """Ctrl-C raises KeyboardInterrupt, even in a process that was started in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_2_a_real_signal_while_steps_run(interruptible):
    model, loss_fn, batches = make(Awkward, k=4, dtype=torch.float32)
    model.eval()
    before = state(model)
    aligner = gradalign.GradAlign(model, 0.3)
    aligner.backward(
        loss_fn, batches
    )  # the first step imports what others find; numpy.random swallows an interrupt there
    for delay in range(1, 40):
        timer = threading.Timer(delay * 4e-4, signal.raise_signal, [signal.SIGINT])
        with pytest.raises(KeyboardInterrupt):
            steps_until_interrupted(timer, aligner, model, loss_fn, batches)
        assert same_state(model, before)


def steps_until_interrupted(timer, aligner, model, loss_fn, batches):
    timer.start()
    end = time.monotonic() + 20  # a signal that does not arrive fails the test instead of keeping it for ever
    while time.monotonic() < end:
        model.zero_grad()
        aligner.backward(loss_fn, batches)


def test_3_dropout_masks_of_a_displaced_pass_are_those_of_its_base_pass():
    model = nn.Sequential(nn.Linear(6, 50), nn.Dropout(0.5), nn.Linear(50, 1))
    masks = []
    model[1].register_forward_hook(lambda _m, _i, out: masks.append(out == 0))
    flags = []
    aligner = gradalign.GradAlign(model, 0.1, radius=1e-6, check_replay=False)

    def loss_fn(x):
        loss = model(x).square().mean()
        flags.append(aligner.displaced)
        return loss

    aligner.backward(loss_fn, list(torch.randn(8, 4, 6)))
    assert flags == [False] * 6 + [True] * 2 + [False] * 2
    assert torch.equal(masks[6], masks[8])
    assert torch.equal(masks[7], masks[9])
    assert not torch.equal(masks[8], masks[9])


def test_4_a_buffer_made_in_a_displaced_pass_is_gone_and_a_replaced_one_is_back():
    class Lazy(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 1)
            self.register_buffer("kept", torch.zeros(2))

        def forward(self, x):
            if aligner.displaced:
                self.kept = torch.ones(5)
                self.register_buffer("extra", torch.ones(1))
            return self.linear(x)

    model = Lazy()
    kept = model.kept
    aligner = gradalign.GradAlign(model, 0.1)
    aligner.backward(lambda x: model(x).square().mean(), list(torch.randn(4, 5, 3)))
    assert model.kept is kept
    assert torch.equal(kept, torch.zeros(2))
    assert "extra" not in model._buffers


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("normalize", ["none", "direction", "gradient"])
def test_5_one_loss_scale_for_all_passes(objective, normalize):
    model, loss_fn, batches = make(Counting, k=8)
    twin, twin_loss, _ = make(Counting, k=8)
    options = {"objective": objective, "normalize": normalize, "telemetry": True}
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    scaled = gradalign.GradAlign(model, 0.3, scaler=scaler, **options)
    scaled.backward(loss_fn, batches)
    plain = gradalign.GradAlign(twin, 0.3, **options)
    plain.backward(twin_loss, batches)
    for p, q in zip(trainable(model), trainable(twin), strict=True):
        torch.testing.assert_close(p.grad / 2.0**12, q.grad, rtol=1e-9, atol=1e-12)
    for name in ("dot", "cosine", "grad_norm", "term_norm", "noise_scale"):
        assert float(getattr(scaled.stats, name)) == pytest.approx(float(getattr(plain.stats, name)), rel=1e-9)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("culprit", range(8))
def test_5_non_finite_values_reach_grad_and_the_scaler_skips(culprit, objective):
    model, loss_fn, batches = make(Counting, k=8, dtype=torch.float32)
    batches[culprit] = (batches[culprit][0] * float("inf"), batches[culprit][1])
    before = state(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu")
    aligner = gradalign.GradAlign(model, 0.3, objective=objective, scaler=scaler)
    aligner.backward(loss_fn, batches)
    assert not all(torch.isfinite(p.grad).all() for p in trainable(model))
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(model.linear.weight, before["linear.weight"])
    assert scaler.get_scale() == 2.0**15


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("normalize", ["none", "direction", "gradient"])
def test_5_zero_gradients_give_no_term(objective, normalize):
    model = nn.Linear(3, 1)
    aligner = gradalign.GradAlign(model, 0.3, objective=objective, normalize=normalize, telemetry=True)
    aligner.backward(lambda x: model(x).square().mean() * 0, list(torch.randn(8, 4, 3)))
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in model.parameters())


@pytest.mark.parametrize("objective", ["dot", "variance"])
def test_6_save_kill_load_go_on_is_bit_identical(objective):
    def fresh():
        model, loss_fn, batches = make(Awkward, k=8, dtype=torch.float32)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        weight = lambda step: 0.01 * step  # noqa: E731
        return model, loss_fn, batches, optimizer, gradalign.GradAlign(model, weight, objective=objective, every=2)

    def steps(parts, num):
        _, loss_fn, batches, optimizer, aligner = parts
        for _ in range(num):
            aligner.backward(loss_fn, batches)
            optimizer.step()
            optimizer.zero_grad()

    whole = fresh()
    torch.manual_seed(2)
    steps(whole, 6)
    first = fresh()
    torch.manual_seed(2)
    steps(first, 3)
    saved = copy.deepcopy([part.state_dict() for part in (first[0], first[3], first[4])]), torch.get_rng_state()
    second = fresh()
    for part, saved_state in zip((second[0], second[3], second[4]), saved[0], strict=True):
        part.load_state_dict(saved_state)
    torch.set_rng_state(saved[1])
    steps(second, 3)
    assert same_state(second[0], state(whole[0]))
    assert second[4].num_steps == 6
