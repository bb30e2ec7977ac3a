"""The CUDA kernels against float64: the tests that the other backends pass, on an emulated GPU and (`gpu`) on a real one."""

from __future__ import annotations

import pytest
import torch
from support.kernel_cases import assert_stored, copies, dot, double, tensors
from support.op_cases import (
    SCALE,
    magnitudes,
    test_a_thousand_small_tensors,
    test_accumulate,
    test_combine,
    test_denormals_are_not_flushed,
    test_displaced_params_are_displaced_anew_from_their_backups,
    test_every_16_bit_number_and_every_tie_rounds_to_nearest_even,
    test_non_finite_values_pass_through,
    test_norm_dot,
    test_perturb,
    test_perturb_from_backups_that_are_directions_too,
    test_perturb_from_backups_that_are_the_params,
    test_perturb_from_wider_backups,
    test_perturb_takes_backups_that_are_a_direction,
    test_restore_and_swap_keep_every_bit,
    test_restore_rounds_wider_backups,
    test_scale_zero_selects,
    test_sums_over_gradients_that_cancel_are_as_precise_as_steps_take_them_to_be,
)

from gradalign.backends import native, reference
from gradalign.objectives import OBJECTIVES

__all__ = [
    "test_a_thousand_small_tensors",
    "test_accumulate",
    "test_combine",
    "test_denormals_are_not_flushed",
    "test_displaced_params_are_displaced_anew_from_their_backups",
    "test_every_16_bit_number_and_every_tie_rounds_to_nearest_even",
    "test_non_finite_values_pass_through",
    "test_norm_dot",
    "test_perturb",
    "test_perturb_from_backups_that_are_directions_too",
    "test_perturb_from_backups_that_are_the_params",
    "test_perturb_from_wider_backups",
    "test_perturb_takes_backups_that_are_a_direction",
    "test_restore_and_swap_keep_every_bit",
    "test_restore_rounds_wider_backups",
    "test_scale_zero_selects",
    "test_sums_over_gradients_that_cancel_are_as_precise_as_steps_take_them_to_be",
]

# Around a vector (4 or 8 elements), a tile (256 threads, up to 4 vectors each) and a chunk (8192).
EDGES = tuple((n,) for edge in (4, 8, 1024, 2048, 4096, 8192, 16384) for n in (edge - 1, edge, edge + 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_sizes_around_vectors_tiles_and_chunks(backend, dtype):
    params, xs = tensors(dtype, "contiguous", 1, EDGES), tensors(dtype, "contiguous", 2, EDGES)
    backups = [torch.full_like(p, 7) for p in params]
    theta = double(params)
    backend.perturb_(params, backups, xs, SCALE)
    assert all(torch.equal(b.double(), t) for b, t in zip(backups, theta, strict=True))
    exact = [t + SCALE * x.double() for t, x in zip(theta, xs, strict=True)]
    assert_stored(params, exact, magnitudes(theta, xs))


def test_nothing_beside_a_tensor_is_written(backend):
    # Views into one allocation, their neighbours watched; lengths and offsets hit every tail and misalignment.
    base = torch.full((20000,), 3.0)
    spans = [(1, 2), (7, 1030), (2000, 2005), (4096, 12289), (12301, 19999)]
    views = [base[a:b] for a, b in spans]
    backend.restore_(views, [torch.full_like(v, 5) for v in views])
    expected = torch.full((20000,), 3.0)
    for a, b in spans:
        expected[a:b] = 5
    assert torch.equal(base, expected)


def test_dtypes_mixed_within_one_call(backend):
    dtypes = (torch.float32, torch.bfloat16, torch.float64, torch.float16, torch.float32, torch.bfloat16)
    params = [torch.randn(1000 + i).to(dtype) for i, dtype in enumerate(dtypes)]
    xs = [torch.randn(1000 + i).to(dtype) for i, dtype in enumerate(reversed(dtypes))]
    theta, backups = double(params), copies(params)
    sums = backend.perturb_(params, backups, xs, SCALE)
    exact = [t + SCALE * x.double() for t, x in zip(theta, xs, strict=True)]
    assert_stored(params, exact, magnitudes(theta, xs), 4 * 2**-24)
    d = [SCALE * x.double() for x in xs]
    assert float(sums[1]) == pytest.approx(dot(d, d), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_elements_are_those_of_the_cpu_bit_for_bit(backend, dtype):
    if native.why_unavailable() is not None:
        pytest.skip(native.why_unavailable())
    lists = [tensors(dtype, "contiguous", seed) for seed in (1, 2, 3)]
    mine, theirs = lists, [copies(ts) for ts in lists]
    results = []
    for kernels, (p, x, y) in ((backend, mine), (native, theirs)):
        backups = [torch.zeros_like(t) for t in p]
        kernels.perturb_(p, backups, x, SCALE, y, torch.tensor(0.3))
        kernels.accumulate_(x, y, SCALE)
        kernels.combine_(y, x, y, SCALE, torch.tensor(-0.7, dtype=torch.float64))
        kernels.swap_(p, backups)
        results.append([*p, *x, *y, *backups])
    assert all(map(torch.equal, *results))


def test_sums_are_the_same_every_time(backend):
    xs, ys = tensors(torch.float32, "contiguous", 1), tensors(torch.float32, "contiguous", 2)
    first = backend.norm_dot(xs, ys)
    assert all(torch.equal(backend.norm_dot(xs, ys), first) for _ in range(3))


def test_the_range_of_the_sums_is_the_one_that_is_documented(backend):
    """A thread adds the squares of 32 elements in float32."""
    for value in (1e-19, 3e18):
        (x,) = torch.full((1, 8192), value)
        assert float(backend.norm_dot([x])[0]) == pytest.approx(8192 * float(x[0].double()) ** 2, rel=1e-6)
    assert float(backend.norm_dot([torch.full((8192,), 4e18)])[0]) == float("inf")
    assert float(backend.norm_dot([torch.full((8192,), 1e-23)])[0]) == 0


def test_a_scale_elsewhere_is_refused(backend):
    if backend.NAME == "cuda" and not hasattr(backend, "IS_EMULATED"):
        pytest.skip("the wrapper moves every tensor to the device")
    x = [torch.ones(3)]
    with pytest.raises(ValueError, match="expected scale to be a 0-dim tensor on the device of the lists"):
        backend.accumulate_(x, [torch.ones(3)], torch.ones(2))
    assert x[0].eq(1).all()


@pytest.mark.parametrize("others", [False, True])
@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_the_numbers_of_a_displacement(backend, objective, others):
    generator = torch.Generator().manual_seed(0)
    for x, g in torch.randn(20, 2, 4, generator=generator, dtype=torch.float64):
        sums = torch.stack((x @ x, x @ g, g @ g))
        scales = torch.tensor(0.7, dtype=torch.float64), torch.tensor(3.0)  # of any dtype, as all scalars
        options = 0.01, objective.alpha, objective.beta, 0.3, objective.unit, others, 1e-12
        found, expected = (b.aim(sums, *scales, *options) for b in (backend, reference))
        assert torch.allclose(found, expected, rtol=1e-14, atol=0)
        asked = torch.rand(3, generator=generator, dtype=torch.float64)
        for direction in (True, False):
            found, wanted = (b.reached(asked, expected, direction) for b in (backend, reference))
            assert torch.allclose(found, wanted, rtol=1e-14, atol=0)
    assert torch.equal(backend.aim(sums * 0, *scales, *options)[:3], torch.zeros(3, dtype=torch.float64))
