"""The vector ops against float64, for every dtype and layout: tests for any backend.

A test file imports those it runs and has a fixture `backend`.
"""

from __future__ import annotations

import pytest
import torch

from gradalign.engine.space import sums_rounding
from support.kernel_cases import DTYPES, LAYOUTS, assert_stored, assert_sums, copies, dot, double, tensors

SCALE = torch.tensor(0.37, dtype=torch.float64)
OTHER = torch.tensor(-1.25, dtype=torch.float32)


each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_layout = pytest.mark.parametrize("layout", LAYOUTS)


def writable(layout: str) -> str:
    return "contiguous" if layout == "expanded" else layout


def magnitudes(*terms: list[torch.Tensor]) -> list[torch.Tensor]:
    return [sum(t.double().abs() for t in group) for group in zip(*terms, strict=True)]


@each_dtype
@each_layout
def test_norm_dot(backend, dtype, layout):
    xs, ys = tensors(dtype, layout, 1), tensors(dtype, "contiguous", 2)
    xx, yy = dot(xs, xs), dot(ys, ys)
    assert_sums(backend, dtype, backend.norm_dot(xs, ys), [xx, dot(xs, ys), yy], [xx, (xx * yy) ** 0.5, yy])
    assert_sums(backend, dtype, backend.norm_dot(xs), [xx, 0, 0], [xx, 0, 0])


@each_dtype
@each_layout
@pytest.mark.parametrize("two", [False, True], ids=["x", "x and y"])
def test_perturb(backend, dtype, layout, two):
    params = tensors(dtype, writable(layout), 1)
    backups = [torch.full_like(p, 7) for p in params]
    xs, ys = tensors(dtype, layout, 2), tensors(dtype, "contiguous", 3)
    theta = double(params)
    more = (ys, OTHER) if two else (None, None)
    sums = backend.perturb_(params, backups, xs, SCALE, *more)
    d = [SCALE * x.double() + (float(OTHER) * y.double() if two else 0) for x, y in zip(xs, ys, strict=True)]
    assert all(torch.equal(b.double(), t) for b, t in zip(backups, theta, strict=True))
    assert_stored(params, [t + step for t, step in zip(theta, d, strict=True)], magnitudes(theta, xs, ys))
    delta = [p.double() - t for p, t in zip(params, theta, strict=True)]
    size = dot(d, d) + dot(xs, xs) * 1e-3
    assert_sums(backend, dtype, sums, [dot(delta, d), dot(d, d), dot(delta, delta)], [size] * 3)


@each_dtype
@pytest.mark.parametrize("aliased", ["xs", "ys"])
@pytest.mark.parametrize("layout", ["contiguous", "misaligned", "transposed", "strided"])
def test_perturb_takes_backups_that_are_a_direction(backend, dtype, aliased, layout):
    params, xs, ys = (tensors(dtype, layout, seed) for seed in (1, 2, 3))
    expected_params, expected_backups = copies(params), copies(params)
    expected = backend.perturb_(expected_params, expected_backups, xs, SCALE, ys, OTHER)
    backups = {"xs": xs, "ys": ys}[aliased]
    sums = backend.perturb_(params, backups, xs, SCALE, ys, OTHER)
    assert all(map(torch.equal, params, expected_params))
    assert all(map(torch.equal, backups, expected_backups))
    torch.testing.assert_close(sums, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("rounded", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_perturb_from_wider_backups(backend, dtype, rounded):
    masters = tensors(torch.float32, "contiguous", 1)
    params = [m.to(dtype) for m in masters]
    before, kept = double(params), copies(masters)
    if not rounded:  # whatever they hold is not read
        params = [torch.full_like(p, float("nan")) for p in params]
    xs = tensors(torch.float32, "contiguous", 2)
    sums = backend.perturb_(params, masters, xs, SCALE, from_backups=True)
    d = [SCALE * x.double() for x in xs]
    assert all(map(torch.equal, masters, kept))
    assert_stored(params, [m.double() + step for m, step in zip(masters, d, strict=True)], magnitudes(masters, xs))
    delta = [p.double() - b for p, b in zip(params, before, strict=True)]
    assert_sums(backend, dtype, sums, [dot(delta, d), dot(d, d), dot(delta, delta)], [dot(d, d) * 1.1] * 3)


@each_dtype
@pytest.mark.parametrize("layout", ["contiguous", "misaligned", "transposed", "strided"])
@pytest.mark.parametrize("two", [False, True])
def test_displaced_params_are_displaced_anew_from_their_backups(backend, dtype, layout, two):
    params, xs, ys = (tensors(dtype, layout, seed) for seed in (1, 2, 3))
    second = (ys, OTHER) if two else ()
    expected_params, theta = copies(params), copies(params)
    expected = backend.perturb_(expected_params, copies(params), xs, SCALE, *second)
    backups = copies(params)
    backend.perturb_(params, backups, ys, OTHER)
    sums = backend.perturb_(params, backups, xs, SCALE, *second, from_backups=True)
    assert all(map(torch.equal, params, expected_params))
    assert all(map(torch.equal, backups, theta))
    torch.testing.assert_close(sums, expected, rtol=1e-6, atol=0)


@each_dtype
def test_perturb_from_backups_that_are_the_params(backend, dtype):
    params, xs = tensors(dtype, "contiguous", 1), tensors(dtype, "contiguous", 2)
    expected = copies(params)
    expected_sums = backend.perturb_(expected, copies(params), xs, SCALE, from_backups=True)
    sums = backend.perturb_(params, params, xs, SCALE, from_backups=True)
    assert all(map(torch.equal, params, expected))
    torch.testing.assert_close(sums, expected_sums, rtol=1e-6, atol=0)


@each_dtype
def test_perturb_from_backups_that_are_directions_too(backend, dtype):
    params = [torch.full_like(t, float("nan")) for t in tensors(dtype, "contiguous", 1)]
    masters = tensors(dtype, "contiguous", 2)
    kept = copies(masters)
    expected = [torch.zeros_like(p) for p in params]
    expected_sums = backend.perturb_(expected, copies(masters), copies(masters), SCALE, from_backups=True)
    sums = backend.perturb_(params, masters, masters, SCALE, from_backups=True)
    assert all(map(torch.equal, masters, kept))
    assert all(map(torch.equal, params, expected))
    torch.testing.assert_close(sums, expected_sums, rtol=1e-6, atol=0)


@each_dtype
@pytest.mark.parametrize("layout", ["contiguous", "misaligned", "transposed", "strided"])
def test_restore_and_swap_keep_every_bit(backend, dtype, layout):
    params, backups = tensors(dtype, layout, 1), tensors(dtype, "contiguous", 2)
    p, b = copies(params), copies(backups)
    backend.swap_(params, backups)
    assert all(map(torch.equal, params, b))
    assert all(map(torch.equal, backups, p))
    backend.restore_(params, backups)
    assert all(map(torch.equal, params, p))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_restore_rounds_wider_backups(backend, dtype):
    masters = tensors(torch.float32, "contiguous", 1)
    params = [torch.zeros_like(m, dtype=dtype) for m in masters]
    backend.restore_(params, masters)
    assert all(torch.equal(p, m.to(dtype)) for p, m in zip(params, masters, strict=True))


@each_dtype
@each_layout
@pytest.mark.parametrize("grad_dtype", [None, torch.bfloat16, torch.float32], ids=str)
def test_accumulate(backend, dtype, layout, grad_dtype):
    accs, grads = tensors(dtype, writable(layout), 1), tensors(grad_dtype or dtype, layout, 2)
    before = double(accs)
    sums = backend.accumulate_(accs, grads, SCALE)
    exact = [b + SCALE * g.double() for b, g in zip(before, grads, strict=True)]
    assert_stored(accs, exact, magnitudes(before, grads))
    gg, aa = dot(grads, grads), dot(before, before)
    assert_sums(backend, dtype, sums, [gg, dot(grads, before)], [gg, (gg * aa) ** 0.5])


@each_dtype
@each_layout
@pytest.mark.parametrize("alias", ["none", "x", "y"])
def test_combine(backend, dtype, layout, alias):
    if layout == "expanded" and alias != "none":
        pytest.skip("an expanded tensor cannot be written")
    xs, ys = tensors(dtype, layout, 1), tensors(dtype, layout, 2)
    outs = {"none": tensors(dtype, writable(layout), 3), "x": xs, "y": ys}[alias]
    x, y = double(xs), double(ys)
    sums = backend.combine_(outs, xs, ys, SCALE, OTHER)
    assert_stored(outs, [SCALE * a + float(OTHER) * b for a, b in zip(x, y, strict=True)], magnitudes(x, y))
    assert_sums(backend, dtype, sums, [dot(outs, outs)], [dot(outs, outs)])


@each_dtype
def test_a_thousand_small_tensors(backend, dtype):
    shapes = tuple((i % 97,) for i in range(1000))
    params, xs = tensors(dtype, "contiguous", 1, shapes), tensors(dtype, "misaligned", 2, shapes)
    backups = [torch.zeros_like(p) for p in params]
    theta = double(params)
    backend.perturb_(params, backups, xs, SCALE)
    exact = [t + SCALE * x.double() for t, x in zip(theta, xs, strict=True)]
    assert_stored(params, exact, magnitudes(theta, xs))
    assert all(torch.equal(b.double(), t) for b, t in zip(backups, theta, strict=True))


@each_dtype
def test_scale_zero_selects(backend, dtype):
    params = [torch.tensor([1.0, 2.0, -0.0], dtype=dtype)]
    theta, backups = copies(params), copies(params)
    xs = [torch.tensor([float("inf"), float("nan"), float("-inf")], dtype=dtype)]
    sums = backend.perturb_(params, backups, xs, torch.tensor(0.0))
    assert torch.equal(params[0], theta[0])
    assert sums.tolist() == [0, 0, 0]


@each_dtype
def test_non_finite_values_pass_through(backend, dtype):
    special = torch.tensor([float("inf"), float("-inf"), float("nan"), 1.0], dtype=dtype)
    outs, ones = [torch.zeros(4, dtype=dtype)], [torch.ones(4, dtype=dtype)]
    sums = backend.combine_(outs, [special], ones, torch.tensor(1.0), torch.tensor(1.0))
    assert torch.equal(outs[0].isnan(), special.isnan())
    assert outs[0][:2].tolist() == [float("inf"), float("-inf")]
    assert outs[0][3] == 2
    assert sums.isnan().all()
    backend.restore_(outs, [special])
    assert torch.equal(outs[0].view(torch.uint8), special.view(torch.uint8))
    assert backend.norm_dot([special[:2]])[0] == float("inf")


@pytest.mark.parametrize(("numel", "offset"), [(1 << 10, 0), (50_000, 0), (1 << 14, 1)])
def test_sums_over_gradients_that_cancel_are_as_precise_as_steps_take_them_to_be(backend, numel, offset):
    generator = torch.Generator().manual_seed(numel)
    for k in (3, 5, 6, 7, 11):
        g = torch.randn(numel + offset, generator=generator)[offset:]
        x = torch.cat([torch.zeros(offset), torch.stack([g] * k).sum(0)])[offset:]
        xx, xg, gg = (float(s) for s in backend.norm_dot([x], [g]))
        left, parts = xx / k**2 - 2 * xg / k + gg, xx / k**2 + gg  # ||x / k - g||^2, which is rounding alone
        assert abs(left) <= sums_rounding("cuda", 2**-23, numel) * parts


@each_dtype
def test_denormals_are_not_flushed(backend, dtype):
    tiny = torch.finfo(dtype).smallest_normal / 4
    x = [torch.full((37,), tiny, dtype=dtype)]
    outs = [torch.zeros(37, dtype=dtype)]
    backend.combine_(outs, x, x, torch.tensor(1.0), torch.tensor(0.5))
    assert outs[0].double().eq(1.5 * x[0].double()).all()
    assert outs[0].double().gt(0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_16_bit_number_and_every_tie_rounds_to_nearest_even(backend, dtype):
    numbers = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16).view(dtype)
    finite = numbers[numbers.isfinite()].sort().values
    middles = (finite[1:].double() + finite[:-1].double()) / 2
    values = torch.cat(
        (numbers.float(), middles.float(), (middles * (1 + 2**-20)).float(), (middles * (1 - 2**-20)).float())
    )
    outs = [torch.empty(len(values), dtype=dtype)]
    backend.restore_(outs, [values])
    expected = values.to(dtype)
    same = (outs[0] == expected) | (outs[0].isnan() & expected.isnan())
    assert same.all()
