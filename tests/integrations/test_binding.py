from __future__ import annotations

import pytest
import torch
from torch import nn

import gradalign
from gradalign.integrations.binding import LateAligner, begun


def test_a_counter_that_ran_ahead_leaves_what_an_estimator_remembers():
    gradients = []
    for ahead in (0, 1):  # steps that the trainer made without the aligner
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
        model[0].requires_grad_(False)
        late = LateAligner({"weight": 0.5, "estimator": "momentum"})
        batches = list(torch.randn(4, 5, 4))
        for step in range(3):
            late.of(model, step).backward(lambda x, model=model: model(x).square().mean(), batches)
            model.zero_grad()
        model[0].requires_grad_(True)
        method = late.of(model, 3 + ahead)
        assert method.num_steps == 3 + ahead
        method.backward(lambda x, model=model: model(x).square().mean(), batches)
        gradients.append([p.grad for p in model.parameters()])
    assert all(map(torch.equal, *gradients))


def test_a_loaded_state_is_that_of_the_method_that_is_made_later():
    model, batches = nn.Linear(4, 4), list(torch.randn(4, 5, 4))
    late, again = (LateAligner({"weight": 0.5, "estimator": "momentum"}) for _ in range(2))
    late.of(model, 0).backward(lambda x: model(x).square().mean(), batches)
    again.load_state_dict(late.state_dict())
    method = again.of(model, 7)
    assert method.num_steps == 7
    assert all(map(torch.equal, method.state_dict()["mean"], late.state_dict()["mean"]))


def test_an_estimator_that_needs_all_is_refused_with_those_that_do_not():
    aligner = gradalign.GradAlign(nn.Linear(4, 4), 0.1, estimator="leave_one_out")
    with pytest.raises(ValueError, match=r'use backward\(loss_fn, .*large batches, .*"split", "prefix" or "momentum"'):
        begun(aligner, 4, torch.Tensor.backward)
