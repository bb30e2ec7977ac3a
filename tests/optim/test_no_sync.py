"""On a GPU nothing is read back to the host, and a step can be captured."""

from __future__ import annotations

import pytest
import torch

from gradalign.backends import dispatch
from gradalign.optim import LAMB, SGD, AdamW

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device"),
]

OURS = {"AdamW": (AdamW, {}), "SGD": (SGD, {"momentum": 0.9}), "LAMB": (LAMB, {})}
each_kind = pytest.mark.parametrize("kind", OURS)
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@pytest.fixture(params=dispatch.ORDER)
def gpu_backend(request):
    try:
        dispatch.backend(request.param, "cuda", frozenset((torch.float32, torch.bfloat16)))
    except RuntimeError as error:
        pytest.skip(str(error))
    return request.param


@pytest.fixture
def no_sync():
    """Any synchronisation is an error between `start()` and the end of the test."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


def parameters(dtype):
    params = [torch.randn(s, device="cuda").to(dtype).requires_grad_() for s in ((), (3, 5), (300_001,))]
    for p in params:
        p.grad = torch.randn_like(p)
    return params


@each_dtype
@each_kind
def test_steps_do_not_synchronise(kind, dtype, gpu_backend, no_sync):
    cls, kwargs = OURS[kind]
    params = parameters(dtype)
    options = {"max_grad_norm": 1.0, "clear": "zero", "master_weights": True, "backend": gpu_backend}
    optimizer = cls(params, **kwargs, **options)
    scaler = torch.amp.GradScaler("cuda")
    scale = scaler.scale(torch.ones((), device="cuda"))
    found_inf = torch.zeros((), device="cuda")
    optimizer.step()  # compiles
    before = [p.detach().clone() for p in params]
    no_sync()
    for _ in range(2):
        for p in params:
            p.grad.fill_(1.0)
        if dtype == torch.bfloat16:  # GradScaler has no check of such gradients on a GPU, and hands the optimizer these
            optimizer.grad_scale, optimizer.found_inf = scale, found_inf
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
    torch.cuda.set_sync_debug_mode("default")
    assert float(optimizer.state[params[2]]["step"]) == 3
    assert not torch.equal(before[2], params[2])


@each_dtype
@each_kind
def test_a_captured_step_equals_the_eager_one(kind, dtype, gpu_backend):
    cls, kwargs = OURS[kind]
    torch.manual_seed(0)
    a = parameters(dtype)
    b = [p.detach().clone().requires_grad_() for p in a]
    for p, q in zip(a, b, strict=True):
        q.grad = p.grad.clone()
    lr = torch.tensor(1e-3, device="cuda")
    eager, captured = (cls(x, lr=lr, max_grad_norm=1.0, backend=gpu_backend, **kwargs) for x in (a, b))
    eager.step()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        captured.step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured.step()
    for rate in (1e-3, 1e-2):
        lr.fill_(rate)
        eager.step()
        graph.replay()
    for p, q in zip(a, b, strict=True):
        assert torch.allclose(p, q, rtol=1e-6, atol=1e-7)


@each_kind
def test_a_rate_on_the_host_is_refused_in_a_capture_before_anything_is_stepped(kind, gpu_backend):
    cls, kwargs = OURS[kind]
    params = parameters(torch.float32)
    optimizer = cls(params, lr=torch.tensor(1e-3), backend=gpu_backend, **kwargs)
    optimizer.step()
    before = [p.detach().clone() for p in params]
    with (
        pytest.raises(ValueError, match="expected a setting that is a tensor .* while a CUDA graph is captured"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        optimizer.step()
    torch.cuda.synchronize()
    assert all(map(torch.equal, params, before))


@each_kind
def test_backends_agree(kind, gpu_backend):
    cls, kwargs = OURS[kind]
    torch.manual_seed(0)
    a = parameters(torch.float32)
    b = [p.detach().clone().requires_grad_() for p in a]
    for p, q in zip(a, b, strict=True):
        q.grad = p.grad.clone()
    for params, backend in ((a, gpu_backend), (b, "reference")):
        optimizer = cls(params, max_grad_norm=1.0, backend=backend, **kwargs)
        for _ in range(3):
            optimizer.step()
    for p, q in zip(a, b, strict=True):
        assert torch.allclose(p, q, rtol=1e-5, atol=1e-6)
