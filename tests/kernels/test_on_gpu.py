"""On a GPU: every op against the reference there, CUDA graphs, streams, no synchronisation."""

from __future__ import annotations

import pytest
import torch
from support.large_offsets import check_large_offsets

from gradalign.backends import reference, signatures, triton

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(triton.why_unavailable() is not None, reason=f"triton: {triton.why_unavailable()}"),
]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZES = (0, 1, 3, 1023, 1024, 1025, 100_003)


def tensors(dtype: torch.dtype, seed: int, offset: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator("cuda").manual_seed(seed)
    return [torch.randn(n + offset, generator=generator, device="cuda").to(dtype)[offset:] for n in SIZES]


def copies(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    return [t.clone() for t in tensors]


def scalar(value: float) -> torch.Tensor:
    return torch.full((), value, device="cuda")


@pytest.mark.parametrize("offset", [0, 1], ids=["aligned", "misaligned"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_vector_ops_give_the_bits_of_the_reference(dtype: torch.dtype, offset: int) -> None:
    results = []
    for backend in (triton, reference):
        params, xs, ys = (tensors(dtype, seed, offset) for seed in (1, 2, 3))
        backups = [torch.empty_like(p) for p in params]
        sums = [backend.norm_dot(xs, ys), backend.perturb_(params, backups, xs, scalar(0.3), ys, scalar(-0.2))]
        backend.swap_(params, backups)
        sums.append(backend.accumulate_(backups, xs, scalar(0.5)))
        sums.append(backend.combine_(ys, xs, ys, scalar(2.0), scalar(-1.0)))
        results.append(([*params, *backups, *ys], torch.cat(sums)))
    (ours, our_sums), (theirs, their_sums) = results
    assert all(map(torch.equal, ours, theirs))
    torch.testing.assert_close(our_sums, their_sums, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_steps_agree_with_the_reference(dtype: torch.dtype) -> None:
    results = []
    for backend in (triton, reference):
        params, grads, m, masters = (tensors(d, s) for s, d in enumerate((dtype, dtype, torch.float32, torch.float32)))
        v = [t.abs() for t in tensors(torch.float32, 5)]
        steps = [torch.zeros((), device="cuda") for _ in params]
        scalars = (scalar(0.5), scalar(0.01), scalar(0.1))
        betas = {"beta1": 0.9, "beta2": 0.999}
        signatures.call(backend, "adamw_step_", params, grads, m, v, [], masters, steps, *scalars, eps=1e-8, **betas)
        signatures.call(backend, "lamb_step_", params, grads, m, v, masters, steps, *scalars, eps=1e-6, **betas)
        signatures.call(backend, "sgd_step_", params, grads, m, masters, steps, *scalars, momentum=0.9, zero_grads=True)
        results.append([*params, *grads, *m, *v, *masters])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5 if ours.dtype == torch.float32 else 1e-2, atol=1e-5)


def test_stochastic_rounding_draws_the_bits_of_the_reference() -> None:
    results = []
    for backend in (triton, reference):
        params, masters = tensors(torch.bfloat16, 1), tensors(torch.float32, 1)
        zeros, steps = [torch.zeros_like(p) for p in params], [torch.zeros((), device="cuda") for _ in params]
        seed = torch.full((), 2**40 + 3, dtype=torch.int64, device="cuda")
        signatures.call(
            backend, "sgd_step_", params, zeros, [], masters, steps, scalar(1), scalar(0), scalar(0), seed=seed
        )
        results.append(params)
    assert all(map(torch.equal, *results))


def test_no_synchronisation() -> None:
    params, xs, one = tensors(torch.float32, 1), tensors(torch.float32, 2), scalar(1.0)
    backups = copies(params)
    triton.perturb_(params, backups, xs, one)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            triton.perturb_(params, backups, tensors_again(xs), one)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def tensors_again(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """New tensors at new addresses."""
    return [t + 0 for t in tensors]


def test_a_cuda_graph_replays_with_its_own_addresses() -> None:
    accs, grads, one = tensors(torch.float32, 1), tensors(torch.float32, 2), scalar(1.0)
    triton.accumulate_(accs, tensors_again(grads), one)
    before = copies(accs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        triton.accumulate_(accs, tensors_again(grads), one)
    for _ in range(2):
        graph.replay()
    triton.accumulate_(accs, tensors_again(grads), one)  # eager calls are not misled by what the capture made
    graph.replay()
    for acc, b, g in zip(accs, before, grads, strict=True):
        torch.testing.assert_close(acc, b + 4 * g)


def test_another_stream_sees_its_own_tables() -> None:
    accs, grads, one = tensors(torch.float32, 1), tensors(torch.float32, 2), scalar(1.0)
    before = copies(accs)
    stream = torch.cuda.Stream()
    triton.accumulate_(accs, grads, one)
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        triton.accumulate_(accs, grads, one)
    torch.cuda.current_stream().wait_stream(stream)
    for acc, b, g in zip(accs, before, grads, strict=True):
        torch.testing.assert_close(acc, b + 2 * g)


def test_large_offsets() -> None:
    check_large_offsets(triton)
