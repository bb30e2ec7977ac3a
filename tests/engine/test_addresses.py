"""Where parameters are: shared memory is refused, a buffer in it is part of a parameter."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import gradalign
from gradalign.engine.addresses import ParamMemory


def shared(*params):
    return ParamMemory(params).shared


def test_views_that_share_an_element_are_found():
    flat = torch.zeros(12)
    matrix = flat.view(3, 4)
    assert shared(flat[:6], flat[6:]) is None
    assert shared(flat[6:], flat[:7]) == (1, 0)
    assert shared(flat, torch.zeros(12), matrix) in {(0, 2), (2, 0)}
    assert shared(matrix[:, ::2], matrix[:, 1::2]) is None
    assert shared(matrix[:, :2], matrix[:, 1:]) is not None
    assert shared(matrix[:, ::2], matrix[0, 1:2], matrix[0, 2:3]) == (0, 2)  # not neighbours by their addresses
    assert shared(matrix.t(), torch.zeros(3)) is None
    assert shared(flat[:0], flat) is None
    assert shared(torch.zeros(3, device="meta"), torch.zeros(3, device="meta")) is None
    assert shared(flat[:6], flat.view(torch.int32)[5:]) == (0, 1)
    assert shared(flat[:6], flat.view(torch.float64)[1:]) is not None


def test_a_tensor_in_the_memory_of_a_parameter_is_covered():
    flat = torch.zeros(12)
    memory = ParamMemory([flat[8:], flat[:4]])
    assert memory.is_of([flat[8:], flat[:4]])
    assert not memory.is_of([flat[7:], flat[:4]])
    assert [memory.covers(flat[i : i + 2]) for i in (0, 3, 4, 6, 7, 8, 11)] == [
        True,
        True,
        False,
        False,
        True,
        True,
        True,
    ]
    assert not memory.covers(torch.zeros(3))
    assert not memory.covers(flat[:0])
    assert not memory.covers(torch.zeros(3).to_sparse())


class TiedData(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight.data = self.first.weight.data


def test_parameters_tied_by_their_data_are_refused_with_the_way_to_tie_them():
    model = TiedData()
    with pytest.raises(ValueError, match=r"got first.weight and second.weight, which share.*b.weight = a.weight"):
        gradalign.GradAlign(model, 0.1)
    model.second.weight = model.first.weight
    aligner = gradalign.GradAlign(model, 0.1)
    theta = model.first.weight.detach().clone()
    batches = list(torch.randn(4, 3, 4))
    aligner.backward(lambda x: model.second(model.first(x).tanh()).square().mean(), batches)
    assert torch.equal(model.first.weight, theta)
    model.zero_grad()
    model.second.weight = nn.Parameter(model.first.weight.data)  # tied so later
    with pytest.raises(ValueError, match="share"):
        aligner.backward(lambda x: model.second(model.first(x).tanh()).square().mean(), batches)
