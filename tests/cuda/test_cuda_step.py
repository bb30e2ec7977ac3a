"""A whole step without waiting for the device: GradAlign.backward and the fused optimizer, eager and in a CUDA graph."""

from __future__ import annotations

import copy

import pytest
import torch
from support.cuda.no_waiting import no_waiting
from support.networks import Awkward, make, trainable
from torch.nn import functional as F  # noqa: N812
from torch.utils._python_dispatch import TorchDispatchMode

import gradalign
from gradalign.estimators import ESTIMATORS

# Ops through which the host learns a value: on a GPU each of them waits.
READS = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.is_nonzero.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.masked_select.default,
}
SETTINGS = (
    {"objective": "dot"},
    {"objective": "norm", "normalize": "none", "difference": "central"},
    {"objective": "variance", "telemetry": True},
    {"objective": "cosine", "normalize": "gradient"},
)


class NothingIsRead(TorchDispatchMode):
    """Refuses every op that hands a value to the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in READS:
            raise AssertionError(f"{func} would wait for the device")
        return func(*args, **(kwargs or {}))


def training(device, optimizer="AdamW", **settings):
    """A model, and a function that runs one step on given micro-batches."""
    model, _, batches = make(Awkward, k=4, dtype=torch.float32)
    model.to(device)
    batches = [(x.to(device), y.to(device)) for x, y in batches]
    aligner = gradalign.GradAlign(model, **({"weight": 0.01} | settings))
    kind = getattr(gradalign.optim, optimizer)
    opt = kind(trainable(model), lr=0.01, max_grad_norm=1.0)

    def step():
        opt.zero_grad(set_to_none=True)
        loss = aligner.backward(lambda b: F.cross_entropy(model(b[0]), b[1]), batches)
        opt.step()
        return loss

    return model, aligner, batches, step


def settings_of(estimator):
    chosen = [s for s in SETTINGS if estimator in ("split", "prefix", "leave_one_out")] or [{"objective": "dot"}]
    return [{"estimator": estimator, **s} for s in chosen]


CASES = [case for estimator in ESTIMATORS if estimator != "exact" for case in settings_of(estimator)]
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case.values())))


@each_case
@pytest.mark.parametrize("backend", ["reference", "native"])
def test_a_step_reads_nothing_back(case, backend):
    model, aligner, _, step = training("cpu", backend=backend, **case)
    aligner._watch._warned = True  # on the CPU it looks at a number at once, on a device when it has arrived
    step()
    before = copy.deepcopy(model.state_dict())
    with NothingIsRead():
        step()
    assert any(not torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_a_value_that_is_read_is_noticed():
    with pytest.raises(AssertionError, match="would wait for the device"), NothingIsRead():
        float(torch.ones(()))


@pytest.mark.gpu
@each_case
@pytest.mark.parametrize("optimizer", ["AdamW", "SGD", "LAMB"])
def test_a_step_does_not_wait_for_the_device(case, optimizer):
    _, _, _, step = training("cuda", optimizer, **case)
    for _ in range(3):
        step()
    with no_waiting():
        step()


@pytest.mark.gpu
@each_case
def test_a_step_with_hooks_does_not_wait_for_the_device(case):
    model, _, _, step = training("cuda", **case)
    for p in trainable(model):
        p.register_hook(lambda g: g.clamp(-1, 1))
    for _ in range(3):
        step()
    with no_waiting():
        step()


@pytest.mark.gpu
@each_case
def test_a_step_under_deterministic_algorithms(case, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    try:
        _, aligner, _, step = training("cuda", **case)
        for _ in range(2):
            step()
        assert bool(torch.isfinite(aligner.stats.term_norm))
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.gpu
def test_a_step_under_another_default_device():
    torch.set_default_device("cuda")
    try:
        _, aligner, _, step = training("cuda")
        for _ in range(2):
            step()
        assert bool(torch.isfinite(aligner.stats.term_norm))
    finally:
        torch.set_default_device(None)


@pytest.mark.gpu
def test_dropout_between_the_layers_of_an_lstm_is_refused_where_cudnn_draws_it():
    model = torch.nn.LSTM(3, 4, num_layers=2, dropout=0.5).cuda()
    batches = list(torch.randn(4, 5, 2, 3, device="cuda"))
    aligner = gradalign.GradAlign(model, 0.01)
    with pytest.raises(RuntimeError, match="cuDNN .* draws from a state of its own"):
        aligner.backward(lambda x: model(x)[0].square().mean(), batches)
    with torch.backends.cudnn.flags(enabled=False):
        aligner.backward(lambda x: model(x)[0].square().mean(), batches)


@pytest.fixture
def reproducible():
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        yield


def new_data(batches, seed):
    generator = torch.Generator("cuda").manual_seed(seed)
    for x, y in batches:
        x.normal_(generator=generator)
        y.random_(3, generator=generator)


def warmed_up(device, **settings):
    """Three steps on a side stream, as torch asks for before a capture."""
    torch.manual_seed(11)
    model, aligner, batches, step = training(device, **settings)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(4):
            step()
    torch.cuda.current_stream().wait_stream(side)
    return model, aligner, batches, step


def captured(step):
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()
    return graph, loss


@pytest.mark.gpu
@pytest.mark.parametrize("objective", ["dot", "variance"])
def test_a_hundred_replays_are_eager_steps_bit_for_bit(reproducible, objective):
    model, aligner, batches, step = warmed_up("cuda", objective=objective)
    losses, dots = [], []
    for i in range(100):
        new_data(batches, i)
        losses.append(step().clone())
        dots.append(aligner.stats.dot.clone())
    expected = {name: t.clone() for name, t in model.state_dict().items()}

    model, aligner, batches, step = warmed_up("cuda", objective=objective)
    graph, loss = captured(step)
    for i in range(100):
        new_data(batches, i)
        graph.replay()
        assert torch.equal(loss, losses[i])
        assert torch.equal(aligner.stats.dot, dots[i])
    assert all(torch.equal(t, expected[name]) for name, t in model.state_dict().items())


@pytest.mark.gpu
def test_one_graph_for_each_branch_of_every(reproducible):
    model, _, batches, step = warmed_up("cuda", every=2)
    for i in range(20):
        new_data(batches, i)
        step()
    expected = {name: t.clone() for name, t in model.state_dict().items()}
    stream = torch.rand(3, device="cuda")

    model, aligner, batches, step = warmed_up("cuda", every=2)
    num_steps = aligner.num_steps
    graphs = {True: captured(step)[0], False: captured(step)[0]}  # the fifth step is active, the sixth rests
    aligner.load_state_dict({"num_steps": num_steps})
    for i in range(20):
        new_data(batches, i)
        graphs[aligner.before_replay()].replay()
    assert all(torch.equal(t, expected[name]) for name, t in model.state_dict().items())
    assert torch.equal(torch.rand(3, device="cuda"), stream)


@pytest.mark.gpu
def test_a_scheduled_weight_reaches_the_replays(reproducible):
    schedule = {"weight": lambda step: 0.001 * step, "every": 2}
    model, _, batches, step = warmed_up("cuda", **schedule)
    for i in range(20):
        new_data(batches, i)
        step()
    expected = {name: t.clone() for name, t in model.state_dict().items()}

    model, aligner, batches, step = warmed_up("cuda", **schedule)
    num_steps = aligner.num_steps
    graphs = {True: captured(step)[0], False: captured(step)[0]}  # the fifth step is active, the sixth rests
    aligner.load_state_dict({"num_steps": num_steps})
    for i in range(20):
        new_data(batches, i)
        graphs[aligner.before_replay()].replay()
    assert all(torch.equal(t, expected[name]) for name, t in model.state_dict().items())
