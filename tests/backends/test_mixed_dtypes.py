"""Lists whose dtypes differ: arithmetic in the widest of them, on every backend."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from gradalign import ops
from gradalign.backends import dispatch

DTYPES = (torch.float64, torch.float32, torch.bfloat16)
SCALE = torch.tensor(0.3, dtype=torch.float64)
# Relative, of sums and of what a float64 tensor holds: rounding of the arithmetic, many times over.
TOLERANCE = {torch.float64: 1e-14, torch.float32: 2e-6}


@pytest.fixture(params=["reference", "native"])
def backend(request):
    module = dispatch.load(request.param)
    if module.why_unavailable() is not None:
        pytest.skip(f"{request.param}: {module.why_unavailable()}")
    return module


def lists(dtypes):
    """One tensor of each dtype."""
    generator = torch.Generator().manual_seed(0)
    return [[torch.randn(41, generator=generator, dtype=torch.float64).to(dtype)] for dtype in dtypes]


def close(actual, exact, dtypes):
    tolerance = TOLERANCE[torch.float64 if torch.float64 in dtypes else torch.float32]
    return torch.allclose(actual.double(), exact, rtol=tolerance, atol=tolerance * float(exact.abs().max()))


@pytest.mark.parametrize("dtypes", list(product(DTYPES, repeat=2)), ids=str)
def test_norm_dot(dtypes, backend):
    xs, ys = lists(dtypes)
    x, y = xs[0].double(), ys[0].double()
    for run in (backend.norm_dot, ops.norm_dot):
        assert close(run(xs, ys), torch.stack((x @ x, x @ y, y @ y)), dtypes)


@pytest.mark.parametrize("from_backups", [False, True])
@pytest.mark.parametrize("dtypes", list(product(DTYPES, repeat=3)), ids=str)
def test_perturb(dtypes, from_backups, backend):
    params, xs, ys = lists(dtypes)
    theta = params[0].double().clone()
    held = [params[0].to(torch.promote_types(params[0].dtype, torch.float32) if from_backups else params[0].dtype)]
    backups = held if from_backups else [torch.zeros_like(params[0])]
    d = float(SCALE) * (xs[0].double() - 2 * ys[0].double())
    sums = backend.perturb_(params, [b.clone() for b in backups], xs, SCALE, ys, -2 * SCALE, from_backups)
    if dtypes[0] == torch.float64:
        assert close(params[0], theta + d, dtypes)
    else:
        size = float((theta.abs() + d.abs()).max())
        assert (params[0].double() - theta - d).abs().max() <= torch.finfo(dtypes[0]).eps * size
    delta = params[0].double() - theta
    assert close(sums, torch.stack((delta @ d, d @ d, delta @ delta)), dtypes[:1])


@pytest.mark.parametrize("dtypes", list(product(DTYPES, repeat=2)), ids=str)
def test_the_sums_of_accumulate(dtypes, backend):
    accs, grads = lists(dtypes)
    acc, g = accs[0].double().clone(), grads[0].double()
    assert close(backend.accumulate_(accs, grads, SCALE), torch.stack((g @ g, g @ acc)), dtypes)


@pytest.mark.parametrize("dtypes", list(product(DTYPES, repeat=3)), ids=str)
def test_the_sums_of_combine(dtypes, backend):
    outs, xs, ys = lists(dtypes)
    (total,) = backend.combine_(outs, xs, ys, SCALE, SCALE)
    assert close(total, outs[0].double() @ outs[0].double(), dtypes[:1])
