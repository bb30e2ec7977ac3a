"""What only a GPU shows: streams, devices, graphs. Every op is run through the native backend on CUDA tensors."""

from __future__ import annotations

import pytest
import torch
from support.cuda.no_waiting import no_waiting
from support.large_offsets import check_large_offsets

from gradalign.backends import native, signatures

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True, scope="module")
def _kernels():
    """Loaded whichever test runs first."""
    if torch.cuda.is_available():
        assert native.why_not_on("cuda") is None


SHAPES = ((1000, 257), (3,), (70001,), (1,), (0,))


def lists(count, device="cuda", dtype=torch.float32, seed=0):
    generator = torch.Generator(device).manual_seed(seed)
    return [[torch.randn(s, generator=generator, device=device, dtype=dtype) for s in SHAPES] for _ in range(count)]


def scalar(value, device="cuda"):
    return torch.full((), value, dtype=torch.float64, device=device)


def every_op(device="cuda", seed=0):
    """Calls all ops once; returns everything that they wrote or returned."""
    p, x, y, m, v, g = lists(6, device, seed=seed)
    v = [t.abs() for t in v]
    backups = [torch.zeros_like(t) for t in p]
    steps = [torch.zeros((), device=device) for _ in p]
    half = scalar(0.5, device)

    def run():
        sums = [native.norm_dot(x), native.norm_dot(x, y), native.perturb_(p, backups, x, half, y, half)]
        native.swap_(p, backups)
        native.restore_(p, backups)
        sums += [native.accumulate_(x, g, half), native.combine_(y, x, y, half, half)]
        rate = scalar(0.01, device)
        signatures.call(
            native, "adamw_step_", p, g, m, v, [], [], steps, half, rate, rate, beta1=0.9, beta2=0.99, eps=1e-8
        )
        signatures.call(native, "sgd_step_", p, g, m, [], steps, half, rate, rate, momentum=0.9)
        signatures.call(native, "lamb_step_", p, g, m, v, [], steps, half, rate, rate, beta1=0.9, beta2=0.99, eps=1e-6)
        return sums

    return run, [*p, *x, *y, *m, *v, *backups, *steps]


def test_the_backend_works_here():
    assert native.why_not_on("cuda") is None
    assert native.supports("cuda", native.DTYPES)


def test_ops_run_on_the_current_stream():
    x = [torch.zeros(1 << 20, device="cuda")]
    native.norm_dot(x)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)  # cycles, about 0.1 s: an op on another stream would overtake the fill
        x[0].fill_(2)
        sums = native.norm_dot(x)
    side.synchronize()
    assert float(sums[0]) == 4 * (1 << 20)


def test_two_streams_at_once_do_not_share_scratch_memory():
    streams = [torch.cuda.Stream() for _ in range(2)]
    xs = [torch.full((1 << 22,), float(i + 1), device="cuda") for i in range(2)]
    torch.cuda.synchronize()
    sums = [[], []]
    for _ in range(50):
        for i, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                sums[i].append(native.norm_dot([xs[i]])[0])
    torch.cuda.synchronize()
    for i in range(2):
        assert torch.stack(sums[i]).eq((i + 1) ** 2 * (1 << 22)).all()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices")
def test_tensors_on_another_device_than_the_current_one():
    torch.cuda.set_device(0)
    x = [torch.randn(5000, device="cuda:1")]
    backups, theta = [torch.zeros_like(x[0])], x[0].clone()
    sums = native.perturb_(x, backups, [theta.clone()], scalar(0.5, "cuda:1"))
    assert sums.device == torch.device("cuda:1")
    assert torch.equal(backups[0], theta)
    torch.testing.assert_close(x[0], 1.5 * theta)
    assert torch.cuda.current_device() == 0


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices")
def test_every_op_on_another_device():
    torch.cuda.set_device(0)
    here, there = every_op("cuda:0"), every_op("cuda:1")  # seeded alike; generators of one kind draw the same numbers
    for a, b in zip(here[0](), there[0](), strict=True):
        torch.testing.assert_close(a.cpu(), b.cpu(), rtol=1e-6, atol=0)
    assert all(torch.allclose(a.cpu(), b.cpu()) for a, b in zip(here[1], there[1], strict=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices")
def test_lists_on_two_devices_are_refused():
    with pytest.raises(ValueError, match="expected dense tensors of one device"):
        native.norm_dot([torch.ones(3, device="cuda:0"), torch.ones(3, device="cuda:1")])


def test_a_scalar_on_the_cpu_is_refused():
    x, (g,) = [torch.ones(3, device="cuda")], [[torch.ones(3, device="cuda")]]
    with pytest.raises(ValueError, match="expected scale to be a 0-dim tensor on the device of the lists"):
        native.accumulate_(x, g, torch.tensor(0.5))
    assert x[0].eq(1).all()


def test_no_op_waits_for_the_device():
    run, _ = every_op()
    run()
    with no_waiting():
        run()


def test_versions_are_bumped():
    p, x = lists(2)
    backups = [torch.zeros_like(t) for t in p]
    before = [t._version for t in (*p, *backups, *x)]
    native.perturb_(p, backups, x, scalar(0.5))
    after = [t._version for t in (*p, *backups, *x)]
    assert [b - a for a, b in zip(before, after, strict=True)] == [1] * 10 + [0] * 5


def test_graph_replays_are_eager_bit_for_bit():
    eager, expected = every_op()
    for _ in range(4):
        sums = eager()
    run, actual = every_op()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()  # warms up: modules are loaded when a kernel is first used
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    for _ in range(3):
        graph.replay()
    assert all(map(torch.equal, actual, expected))
    assert all(map(torch.equal, captured, sums))


def test_large_offsets():
    check_large_offsets(native)
