from __future__ import annotations

import pytest
import torch
from torch import nn

from gradalign.engine.sketch import CHUNK, WIDTH, Sketch, cosines
from gradalign.engine.space import ParamSpace


def space_of(*sizes):
    return ParamSpace([nn.Parameter(torch.zeros(size)) for size in sizes], None, "reference")


def test_the_error_of_an_inner_product_keeps_its_bound():
    space = space_of(3 * CHUNK + 17, 1000)
    sketch = Sketch(space)
    generator = torch.Generator().manual_seed(1)
    errors = []
    for _ in range(200):
        x, y = ([torch.randn(p.shape, generator=generator) for p in space.params] for _ in range(2))
        sx, sy = sketch.of(x), sketch.of(y)
        exact = [
            sum(float(a.double() @ b.double()) for a, b in zip(u, v, strict=True)) for u, v in ((x, x), (x, y), (y, y))
        ]
        bound = ((exact[0] * exact[2] + exact[1] ** 2) / WIDTH) ** 0.5
        errors.append((float(sx @ sy) - exact[1]) / bound)
        assert float(sx @ sx) == pytest.approx(exact[0], rel=5 * (2 / WIDTH) ** 0.5)
    root_mean_square = (sum(e**2 for e in errors) / len(errors)) ** 0.5
    assert 0.8 < root_mean_square < 1.2
    assert abs(sum(errors) / len(errors)) < 0.25


def test_energy_at_the_same_place_of_every_chunk_does_not_collide():
    space = space_of(64 * CHUNK)
    x, y = torch.zeros(64 * CHUNK), torch.zeros(64 * CHUNK)
    x[::CHUNK] = 1.0
    y[::CHUNK] = torch.tensor([1.0, -1.0]).repeat(32)
    sketch = Sketch(space)
    assert abs(float(sketch.of([x]) @ sketch.of([y]))) / 64 < 0.1
    assert float(sketch.of([x]).square().sum()) / 64 == pytest.approx(1, abs=0.1)


def test_it_is_linear_and_leaves_the_random_stream_alone():
    space = space_of(2 * CHUNK, 7)
    x, y = ([torch.randn(p.shape) for p in space.params] for _ in range(2))
    before = torch.get_rng_state()
    both = Sketch(space).of([a + 2 * b for a, b in zip(x, y, strict=True)])
    torch.testing.assert_close(both, Sketch(space).of(x) + 2 * Sketch(space).of(y), rtol=1e-4, atol=1e-3)
    assert torch.equal(torch.get_rng_state(), before)


def test_parameters_without_a_gradient_do_not_shift_the_others():
    space = space_of(5, CHUNK)
    x = torch.randn(CHUNK)
    assert torch.equal(Sketch(space).of([None, x]), Sketch(space).of([torch.zeros(5), x]))


def test_small_parameters_share_chunks():
    """One call of 65,536 elements for all of them: a call each made `tasks=` ten times slower on 600 small tensors."""
    space = space_of(*[50] * 600, 40 * CHUNK, 3)
    assert [len(run) for run in Sketch(space)._runs()] == [600, 1, 1]


def test_cosines():
    sketches = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]], dtype=torch.float64)
    found = cosines(sketches)
    half = 2**-0.5
    torch.testing.assert_close(found, torch.tensor([[1, 0, half], [0, 1, half], [half, half, 1]], dtype=torch.float64))
