"""Stochastic rounding of bfloat16 parameters."""

from __future__ import annotations

import math

import pytest
import torch

from gradalign.backends.rounding import RoundingStream
from gradalign.optim import LAMB, SGD, AdamW

OURS = {"AdamW": (AdamW, {}), "SGD": (SGD, {"momentum": 0.9}), "LAMB": (LAMB, {})}
each_kind = pytest.mark.parametrize("kind", OURS)


def stepped(kind, start, seed, backend, **kwargs):
    cls, defaults = OURS[kind]
    p = start.clone().requires_grad_()
    optimizer = cls([p], stochastic_rounding=True, rounding_seed=seed, backend=backend, **defaults, **kwargs)
    p.grad = torch.linspace(-1, 1, start.numel()).bfloat16()
    optimizer.step()
    return p.detach()


@each_kind
def test_the_mean_over_seeds_is_the_unrounded_step(kind, backend):
    start, seeds = torch.linspace(0.5, 4.0, 256).bfloat16(), 400
    cls, defaults = OURS[kind]
    exact = start.float().requires_grad_()
    exact.grad = torch.linspace(-1, 1, 256).bfloat16().float()
    cls([exact], lr=1e-3, backend=backend, **defaults).step()
    draws = torch.stack([stepped(kind, start, seed, backend, lr=1e-3).double() for seed in range(seeds)])
    spread = torch.ldexp(torch.ones(256).double(), torch.frexp(start.double()).exponent - 8)  # one ulp of bfloat16
    error = (draws.mean(0) - exact.detach().double()) / spread
    # An element's mean is binomial, with a standard error of at most 0.5 / sqrt(seeds) ulp; of all 256, a sixteenth of that.
    assert error.abs().max() < 5 * 0.5 / math.sqrt(seeds)
    assert error.mean().abs() < 4 * 0.5 / math.sqrt(seeds * 256)
    assert draws.std(0).max() > 0


@each_kind
def test_deterministic_for_a_seed_and_different_for_another(kind, backend):
    start = torch.linspace(0.5, 4.0, 4099).bfloat16()
    assert torch.equal(stepped(kind, start, 3, backend), stepped(kind, start, 3, backend))
    assert not torch.equal(stepped(kind, start, 3, backend), stepped(kind, start, 4, backend))


def test_steps_and_tensors_draw_differently(backend):
    params = [torch.ones(4099).bfloat16().requires_grad_() for _ in range(2)]
    optimizer = SGD(params, lr=2**-10, stochastic_rounding=True, backend=backend)
    seen = []
    for _ in range(2):
        for p in params:
            with torch.no_grad():
                p.fill_(1.0)
            p.grad = torch.ones_like(p)
        optimizer.step()
        seen += [p.detach().clone() for p in params]
    assert all(not torch.equal(a, b) for i, a in enumerate(seen) for b in seen[:i])


def test_torchs_random_numbers_are_left_alone(backend):
    before = torch.get_rng_state()
    stepped("AdamW", torch.ones(4099).bfloat16(), 0, backend)
    assert torch.equal(torch.get_rng_state(), before)


@each_kind
def test_backends_draw_the_same_bits(kind, backend):
    start = torch.linspace(-4.0, 4.0, 70_001).bfloat16()
    a, b = stepped(kind, start, 7, backend), stepped(kind, start, 7, "reference")
    # LAMB's norms are summed in another order, which moves a step by parts in 1e6 and so flips a few of the roundings.
    assert (a != b).sum() <= (20 if kind == "LAMB" else 0)


def test_layout_does_not_change_what_an_element_draws(backend):
    start = torch.linspace(0.5, 4.0, 60).reshape(6, 10).bfloat16()
    p, q = start.clone().requires_grad_(), start.t().contiguous().t().requires_grad_()
    for x in (p, q):
        x.grad = torch.ones_like(x)
        SGD([x], lr=1e-3, stochastic_rounding=True, backend=backend).step()
    assert not q.is_contiguous()
    assert torch.equal(p, q)


def test_other_dtypes_are_not_touched_by_it(backend):
    p, q = (torch.linspace(0.5, 4.0, 60).requires_grad_() for _ in range(2))
    for x, stochastic in ((p, True), (q, False)):
        x.grad = torch.ones_like(x)
        AdamW([x], stochastic_rounding=stochastic, backend=backend).step()
    assert torch.equal(p, q)


def test_moments_are_kept_in_float32(backend):
    p = torch.ones(3).bfloat16().requires_grad_()
    optimizer = AdamW([p], stochastic_rounding=True, backend=backend)
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert optimizer.state[p]["exp_avg_sq"].dtype == torch.float32
    assert torch.allclose(optimizer.state[p]["exp_avg_sq"], torch.full((3,), 1e-3))


def mixed(x):
    """The mix of the docstring, in Python's integers."""
    x = (x + 0x9E3779B9) & 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return x ^ (x >> 16)


def test_the_stream_is_the_documented_one():
    seed, index, t = -(5 << 32) + 123_456_789, 3, 17
    low, high = seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF
    key = mixed(low ^ mixed(high ^ mixed(index ^ mixed(t))))
    values = torch.linspace(1.0, 2.0, 100)
    stream = RoundingStream(torch.tensor(seed), index, torch.tensor(float(t), dtype=torch.float64))
    rounded = torch.cat([stream.round(values[:30]), stream.round(values[30:])])
    for e, (x, r) in enumerate(zip(values, rounded, strict=True)):
        bits = mixed(e ^ mixed(key ^ 0)) & 0xFFFF
        pattern = int(x.view(torch.int32)) + bits
        assert int(r.view(torch.int16)) == pattern >> 16


def test_what_bfloat16_can_represent_stays_and_the_rest_passes():
    stream = RoundingStream(torch.tensor(1), 0, torch.tensor(1.0))
    values = torch.tensor([0.0, -0.0, 1.0, -1.5, 2.0**-126, torch.inf, -torch.inf])
    assert torch.equal(stream.round(values).view(torch.int16), values.bfloat16().view(torch.int16))
    assert stream.round(torch.full((100,), torch.nan)).isnan().all()
    denormal = torch.full((1000,), 2.0**-140)
    assert set(stream.round(denormal).tolist()) <= {0.0, 2.0**-133}
