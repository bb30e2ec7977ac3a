"""All parameters as one vector: sums and updates where some entries are missing, on small numbers that are exact."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gradalign.engine.space import ParamSpace


@pytest.fixture(params=["reference", "auto"])
def space(request):
    return ParamSpace([nn.Parameter(torch.tensor(values)) for values in THETA], None, request.param)


THETA = [[1.0, 2.0], [3.0], [4.0, 5.0]]


def vector(*entries):
    return [None if e is None else torch.tensor(e) for e in entries]


def values(entries):
    return [None if e is None else e.tolist() for e in entries]


def scalar(value):
    return torch.tensor(value, dtype=torch.float64)


def test_the_measured_parameters_are_those_given_in_the_order_of_the_model():
    params = [nn.Parameter(torch.zeros(1)) for _ in range(3)]
    space = ParamSpace(params, [params[2], params[0]], "reference")
    assert (space.measured, space.others, space.everywhere) == ([0, 2], [1], [0, 1, 2])
    assert ParamSpace(params, None, "reference").others == []


def test_the_zero_vector_and_scalars(space):
    assert space.zeros() == [None, None, None]
    one = space.scalar(1.0)
    assert (one.dtype, one.shape, float(one)) == (torch.float64, (), 1.0)


def test_gradients_are_read_and_set(space):
    given = vector([1.0, 1.0], None, [2.0, 2.0])
    space.set_grads(given)
    assert all(p.grad is g for p, g in zip(space.params, given, strict=True))
    assert all(a is b for a, b in zip(space.grads(), given, strict=True))
    space.set_grads(None)
    assert space.grads() == [None, None, None]


def test_inner_products_count_missing_entries_as_zero(space):
    x, y = vector([1.0, 2.0], [3.0], None), vector([5.0, 6.0], None, [7.0, 8.0])
    assert space.norm_dot(x, y).tolist() == [1 + 4 + 9, 5 + 12, 25 + 36 + 49 + 64]
    assert space.norm_dot(x).tolist() == [14, 0, 0]
    assert space.norm_dot(x, y, over=[1, 2]).tolist() == [9, 0, 113]
    assert space.norm_dot(space.zeros(), space.zeros()).tolist() == [0, 0, 0]


def test_accumulate_adds_and_returns_the_products_with_the_sum_before(space):
    total, g = vector([1.0, 2.0], None, None), vector([10.0, 20.0], [30.0], None)
    assert space.accumulate(total, g).tolist() == [100 + 400 + 900, 10 + 40]
    assert values(total) == [[11.0, 22.0], [30.0], None]
    assert total[1] is g[1]  # as autograd does


def test_accumulate_with_a_scale_makes_an_entry_of_its_own(space):
    total, g = vector([1.0, 2.0], None, None), vector([10.0, 20.0], [30.0], None)
    assert space.accumulate(total, g, scalar(0.5)).tolist() == [1400, 50]
    assert values(total) == [[6.0, 12.0], [15.0], None]
    assert values(g) == [[10.0, 20.0], [30.0], None]


def test_combine_leaves_alone_what_the_second_vector_lacks(space):
    x, y = vector([1.0, 2.0], [3.0], None), vector([10.0, 20.0], None, [40.0, 50.0])
    space.combine(x, x, y, scalar(2.0), scalar(0.5))
    assert values(x) == [[7.0, 14.0], [3.0], [20.0, 25.0]]


def test_perturb_moves_along_both_vectors_and_keeps_theta(space):
    x, y = vector([1.0, 1.0], [1.0], None), vector([0.0, 2.0], None, [1.0, 1.0])
    backups = vector([0.0, 0.0], [0.0], [0.0, 0.0])
    sums = space.perturb(backups, x, scalar(2.0), y, scalar(1.0), [0, 1, 2])
    assert values(space.params) == [[3.0, 6.0], [5.0], [5.0, 6.0]]
    assert values(backups) == THETA
    assert sums.tolist() == [4 + 16 + 4 + 1 + 1] * 3  # delta.d, d.d, delta.delta: what is displaced is exact here
    space.reflect(backups, [0, 1, 2])
    assert values(space.params) == [[-1.0, -2.0], [1.0], [3.0, 4.0]]
    space.restore(backups, [0, 1, 2])
    assert values(space.params) == THETA


def test_swaps_exchange_parameters_and_backups(space):
    backups = vector([10.0, 20.0], None, [40.0, 50.0])
    space.swap_in(backups, [0, 2])
    assert values(space.params) == [[10.0, 20.0], [3.0], [40.0, 50.0]]
    assert values(backups) == [[1.0, 2.0], None, [4.0, 5.0]]
    space.swap_out(backups, [0, 2])
    assert values(space.params) == THETA


def test_combine_returns_the_square_of_what_it_wrote_where_no_entry_is_missing(space):
    x, y = vector([1.0, 2.0], [3.0], [4.0, 5.0]), vector([1.0, 1.0], [1.0], [1.0, 1.0])
    square = space.combine(x, x, y, scalar(1.0), scalar(-1.0))
    assert values(x) == [[0.0, 1.0], [2.0], [3.0, 4.0]]
    assert float(square) == float(space.norm_dot(x)[0]) == 30
    assert space.combine(x, x, vector(None, [1.0], [1.0, 1.0]), scalar(1.0), scalar(1.0)) is None


def test_a_vector_of_another_length_is_no_gradient(space):
    space.set_grads(vector([1.0, 1.0], [1.0], [2.0, 2.0]))
    with pytest.raises(ValueError, match="zip"):
        space.set_grads([])
