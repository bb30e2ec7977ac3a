"""Any two methods stand in the same place of the same loop."""

from __future__ import annotations

import itertools

import pytest
import torch
from support.baseline_methods import METHODS
from support.networks import Counting, make

import gradalign


def trained(names, num=12):
    """Losses of a loop whose steps are filled by these methods in turn."""
    model, loss_fn, batches = make(Counting, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    methods, losses = [METHODS[name](model) for name in names], []
    for method in itertools.islice(itertools.cycle(methods), num):
        model.count.zero_()
        batches = batches[1:] + batches[:1]  # FOMAML and MAML follow the last
        losses.append(float(method.backward(loss_fn, batches)))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert [method.num_steps for method in methods] == [num // len(methods)] * len(methods)
    return losses


@pytest.mark.parametrize("names", list(itertools.combinations(METHODS, 2)), ids="-".join)
def test_any_two_in_turn(names):
    losses = trained(names)
    assert losses[-1] < 0.85 * losses[0]


@pytest.mark.parametrize("name", METHODS)
def test_each_trains_by_itself_and_resumes(name):
    losses = trained([name])
    assert losses[-1] < 0.85 * losses[0]
    model, loss_fn, batches = make(Counting)
    method, resumed = METHODS[name](model), METHODS[name](model)
    method.backward(loss_fn, batches)
    resumed.load_state_dict(method.state_dict())
    assert resumed.num_steps == 1


def test_the_list_of_names():
    assert gradalign.baselines.__all__ == ["FOMAML", "MAML", "SAM", "Reptile"]
