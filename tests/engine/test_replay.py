"""Buffers of every kind come back, whatever a pass or an exception left in them."""

from __future__ import annotations

import random

import numpy
import pytest
import torch
from support.fault_injection import InjectedError
from torch import nn

from gradalign import GradAlign, baselines
from gradalign.engine import replay
from gradalign.engine.addresses import ParamMemory
from gradalign.engine.replay import BufferState

METHODS = {
    **{
        name: lambda model, name=name: GradAlign(model, 0.1, estimator=name)
        for name in ("split", "prefix", "leave_one_out", "symmetric")
    },
    "SAM": lambda model: baselines.SAM(model, 0.1),
    "weight 0": lambda model: GradAlign(model, 0.0),
}


class Buffered(nn.Module):
    """A layer and a buffer that every forward changes as `change` says."""

    def __init__(self, buffer, change):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.register_buffer("b", buffer)
        self.change = change

    def forward(self, x):
        y = self.layer(x)
        self.change(self, y.detach())
        return (y * (1 + self.b.float().mean())).square().mean()


def fill(model, y):
    model.b[:1].add_(y.abs().mean())


def grow(model, y):
    if model.b.shape != y.shape[1:]:
        model.b.resize_(y.shape[1:])
    model.b.copy_(y.abs().amax(0))


def move(model, y):
    model.b.data = y.abs().amax(0)


def reassign(model, y):
    model.b = model.b + y.abs().mean()


KINDS = {
    "expanded": (lambda: torch.ones(1).expand(3), lambda model, y: model.b[:1].add_(y.abs().mean())),
    "overlapping": (
        lambda: torch.ones(4).as_strided((3, 2), (1, 1)),
        lambda model, y: model.b[0, :1].add_(y.abs().mean()),
    ),
    "strided": (lambda: torch.ones(3, 4)[:, ::2], lambda model, y: model.b.add_(y.abs().mean())),
    "resized": (lambda: torch.ones(1), grow),
    "moved": (lambda: torch.ones(3), move),
    "reassigned": (lambda: torch.ones(3), reassign),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_buffers_of_every_kind(kind, method):
    torch.manual_seed(0)
    make_buffer, change = KINDS[kind]
    model, batches = Buffered(make_buffer(), change), list(torch.randn(4, 5, 4))
    plain = Buffered(make_buffer(), change)
    plain.layer.load_state_dict(model.layer.state_dict())
    aligner, calls, before, shape = METHODS[method](model), [0], model.b.clone(), model.b.shape

    def failing(x):
        calls[0] += 1
        loss = model(x)
        if calls[0] == 3:
            raise InjectedError
        return loss

    with pytest.raises(InjectedError):
        aligner.backward(failing, batches)
    assert model.b.shape == shape
    assert torch.equal(model.b, before)
    assert all(p.grad is None for p in model.parameters())
    aligner.backward(model, batches)
    for x in batches:
        plain(x)
    assert torch.equal(model.b, plain.b)


def test_what_lies_between_the_elements_of_a_strided_buffer_is_left_alone():
    whole = torch.zeros(3, 4)
    module = nn.Module()
    module.register_buffer("b", whole[:, ::2])
    state = BufferState([module], ParamMemory([]))
    whole.fill_(1)
    state.put_back()
    assert torch.equal(whole, torch.tensor([[0.0, 1.0, 0.0, 1.0]]).expand(3, 4))


@pytest.mark.parametrize("estimator", ["split", "prefix", "leave_one_out"])
@pytest.mark.parametrize("view", [lambda w: w.data, lambda w: w.detach()[1], lambda w: w.data.t()])
def test_a_buffer_in_the_memory_of_a_parameter_does_not_undo_its_displacement(estimator, view):
    model = nn.Linear(4, 3)
    model.register_buffer("alias", view(model.weight))
    theta, seen = model.weight.detach().clone(), []
    aligner = GradAlign(model, 0.1, estimator=estimator, check_replay=False)

    def loss_fn(x):
        seen.append((aligner.displaced, torch.equal(model.weight, theta)))
        return model(x).square().mean()

    aligner.backward(loss_fn, list(torch.randn(4, 5, 4)))
    assert all(displaced != at_theta for displaced, at_theta in seen)
    assert torch.equal(model.weight, theta)


class Scripted(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Linear(4, 4), torch.jit.script(nn.BatchNorm1d(4))

    def forward(self, x):
        return self.norm(self.layer(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("weight", [0.0, 0.1])
@pytest.mark.parametrize("whole", [False, True])
def test_scripted_modules(weight, whole):
    torch.manual_seed(0)
    eager = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    model = Scripted()
    model.layer.load_state_dict(eager[0].state_dict())
    if whole:
        model = torch.jit.script(eager)
    batches = list(torch.randn(4, 5, 4))
    calls = []

    def failing(x):
        calls.append(x)
        if len(calls) == 3:
            raise InjectedError
        return model(x).pow(3).mean()

    aligner = GradAlign(model, weight)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(InjectedError):
        aligner.backward(failing, batches)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    if whole:
        twin = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        twin.load_state_dict(before)
    else:
        twin = eager
    GradAlign(twin, weight).backward(lambda x: twin(x).pow(3).mean(), batches)
    aligner.backward(lambda x: model(x).pow(3).mean(), batches)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-5)
    for (_, b), (_, c) in zip(model.named_buffers(), twin.named_buffers(), strict=True):
        torch.testing.assert_close(b, c)


GENERATORS = {"Python": (random.seed, random.random), "NumPy": (numpy.random.seed, numpy.random.rand)}
SPARING = {
    "split": {"estimator": "split", "objective": "variance"},
    "prefix": {"estimator": "prefix"},
    "leave_one_out": {"estimator": "leave_one_out"},
    "symmetric": {"estimator": "symmetric"},
}


@pytest.mark.parametrize("generator", GENERATORS)
@pytest.mark.parametrize("method", [*SPARING, "SAM", "SAM, each its own"])
@pytest.mark.parametrize("used", [False, True])
def test_a_generator_that_no_pass_uses_is_left_to_other_threads(method, generator, used):
    seed, draw = GENERATORS[generator]
    model, passes = nn.Linear(4, 3), []
    if method in SPARING:
        aligner = GradAlign(model, 0.1, check_replay=False, **SPARING[method])
    else:
        aligner = baselines.SAM(model, 0.1, per_micro_batch=method != "SAM")

    def loss_fn(x):
        passes.append(aligner.displaced)
        if used:
            draw()
        elif aligner.displaced:
            thread.append(draw())  # as another thread would, while this pass runs
        return model(x).square().mean()

    seed(0)
    expected = [draw() for _ in range(20)]
    seed(0)
    thread = []
    aligner.backward(loss_fn, list(torch.randn(4, 5, 4)))
    if used:
        assert draw() == expected[4]  # where the base passes alone leave it
    else:
        assert thread == expected[: sum(passes)]
        assert len(thread) > 0


class Draws(nn.Module):
    """Dropout by a generator of Python's or NumPy's."""

    def __init__(self, draw):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.draw = draw
        self.drawn = []

    def forward(self, x):
        numbers = [self.draw() for _ in range(3)]
        self.drawn.append(numbers)
        return (self.layer(x) * sum(numbers)).square().mean()


DRAWS = {
    "python": random.random,
    "python gauss": lambda: random.gauss(0, 1),
    "numpy": numpy.random.rand,
    "numpy randn": numpy.random.randn,
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_displaced_passes_draw_what_their_base_passes_drew(draw):
    """Three numbers a pass: of the normal ones, which come in pairs, every other pass begins with one that was kept."""
    model = Draws(draw)
    aligner = GradAlign(model, 0.1, estimator="leave_one_out", check_replay=False)
    for _ in range(3):
        model.drawn.clear()
        aligner.backward(model, list(torch.randn(4, 2, 4)))
        model.zero_grad()
        assert model.drawn[4:] == model.drawn[:4]
        assert len({n for numbers in model.drawn for n in numbers}) == 12


@pytest.mark.parametrize(
    ("generator", "draws"),
    [
        (
            replay.PYTHON,
            [random.random, lambda: random.gauss(0, 1), lambda: random.gauss(0, 1), lambda: random.seed(3)],
        ),
        (replay.NUMPY, [numpy.random.rand, numpy.random.randn, numpy.random.randn, lambda: numpy.random.seed(3)]),
    ],
    ids=["python", "numpy"],
)
def test_a_state_is_read_again_after_every_draw_and_else_kept(generator, draws):
    reads = []
    original = generator._read
    generator._read = lambda: reads.append(1) or original()
    try:
        for draw in draws:
            draw()
            state = generator.now()
            expected = original()
            assert replay._same_numpy(state, expected) if isinstance(state[0], str) else state == expected
        reads.clear()
        assert generator.now() is generator.now()
        assert not reads
    finally:
        generator._read = original


def test_another_generator_of_numpy_is_read_every_time(monkeypatch):
    monkeypatch.setattr(numpy.random, "get_bit_generator", lambda: numpy.random.PCG64(0))
    assert replay._numpy_memory() is None
    assert replay.NUMPY.now() is not replay.NUMPY.now()


def test_a_generator_whose_memory_is_laid_out_otherwise_is_read_every_time(monkeypatch):
    monkeypatch.setattr(replay, "_memory_of", lambda generator: (b"always the same",))
    assert not replay._memory_shows_draws()
    state = replay.SlowState(random.getstate, lambda: None, lambda _: True)
    assert state.now() is not state.now()


@pytest.mark.parametrize("draw", [random.random, lambda: random.gauss(0, 1), numpy.random.rand, numpy.random.randn])
def test_generators_are_set_where_they_moved_and_left_alone_where_not(monkeypatch, draw):
    state = replay.RandomState([])
    before = random.getstate(), numpy.random.get_state()
    for _ in range(2):
        draw()
        state.put_back()
        assert random.getstate() == before[0]
        assert numpy.random.get_state()[1].tolist() == before[1][1].tolist()
        assert numpy.random.get_state()[2:] == before[1][2:]
    now = replay.RandomState([])
    monkeypatch.setattr(random, "setstate", None)
    now.put_back()


def test_a_read_that_is_interrupted_leaves_no_state_of_another_time(monkeypatch):
    random.seed(1)
    held = replay.PYTHON.now()
    random.seed(2)
    monkeypatch.setattr(replay.PYTHON, "_may_keep", lambda state: 1 / 0)  # between reading and keeping
    with pytest.raises(ZeroDivisionError):
        replay.PYTHON.now()
    monkeypatch.undo()
    random.seed(1)
    assert replay.PYTHON.now() == random.getstate() == held
