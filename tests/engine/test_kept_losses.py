"""The losses of a step in one tensor: their values, and what does not fit into it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import gradalign
from gradalign.engine.kept_losses import KeptLosses
from gradalign.engine.step import Step


def loss_of(value, dtype=torch.float32):
    return torch.tensor(value, dtype=dtype, requires_grad=True) * 1


def test_a_kept_loss_has_no_graph_and_is_not_the_loss():
    losses = KeptLosses(2)
    loss = loss_of(3.0)
    kept = losses.keep(loss)
    with torch.no_grad():
        loss += 1
    assert kept.tolist() == 3
    assert not kept.requires_grad
    assert kept.shape == ()


def test_losses_in_their_order_are_side_by_side_already():
    losses = KeptLosses(3)
    kept = [losses.keep(loss_of(float(i))) for i in range(3)]
    assert losses.side_by_side(kept).tolist() == [0, 1, 2]
    assert losses.side_by_side(kept[:2]) is None
    assert losses.side_by_side([kept[1], kept[0], kept[2]]) is None
    assert losses.side_by_side([k.clone() for k in kept]) is None


def test_fewer_losses_than_there_will_be_are_not_side_by_side():
    losses = KeptLosses(3)
    assert losses.side_by_side([losses.keep(loss_of(1.0))]) is None


@pytest.mark.parametrize("first", [torch.float32, torch.float64])
def test_a_loss_of_another_dtype_keeps_it(first):
    losses, other = KeptLosses(2), {torch.float32: torch.float64, torch.float64: torch.float32}[first]
    kept = [losses.keep(loss_of(1 / 3, first)), losses.keep(loss_of(1 / 3, other))]
    assert [k.dtype for k in kept] == [first, other]
    assert kept[1] == torch.tensor(1 / 3, dtype=other)
    assert losses.side_by_side(kept) is None


def test_more_losses_than_were_announced_are_kept_too():
    losses = KeptLosses(1)
    kept = [losses.keep(loss_of(float(i))) for i in range(3)]
    assert [k.item() for k in kept] == [0, 1, 2]
    assert losses.side_by_side(kept) is None


@pytest.mark.parametrize(
    "options", [{"weight": 0.0}, {}, {"objective": "variance"}, {"estimator": "leave_one_out"}, {"telemetry": True}]
)
def test_a_step_makes_no_tensor_for_each_loss(monkeypatch, options):
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    aligner = gradalign.GradAlign(model, **({"weight": 1e-3} | options))
    seen, stats = [], Step.stats

    def spy(self, losses, found):
        seen.append({loss.untyped_storage().data_ptr() for loss in losses})
        return stats(self, losses, found)

    monkeypatch.setattr(Step, "stats", spy)
    batches = list(torch.randn(8, 4, 3))
    returned = aligner.backward(lambda x: model(x).square().mean(), batches)
    assert [len(memory) for memory in seen] == [1]
    with torch.no_grad():
        assert torch.allclose(returned, torch.stack([model(x).square().mean() for x in batches]).mean())


def test_what_a_backward_does_to_the_loss_does_not_count():
    """Its value is taken when loss_fn returns it."""
    model = nn.Linear(3, 1)
    batches = list(torch.randn(4, 2, 3))

    def backward(loss):
        loss.backward()
        for held in losses:
            held.zero_()

    losses = []

    def loss_fn(x):
        loss = model(x).square().mean()
        losses.append(loss.detach())
        return loss

    with torch.no_grad():
        expected = torch.stack([model(x).square().mean() for x in batches]).mean()
    assert torch.allclose(gradalign.GradAlign(model, 0.0).backward(loss_fn, batches, backward=backward), expected)
