"""What the graph of a loss tells: casts of parameters, and parameters of other modules."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from gradalign import GradAlign
from gradalign.engine import graph


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_cast_of_inputs_or_to_a_wider_dtype_is_no_autocast(dtype):
    model = nn.Linear(3, 3)
    aligner = GradAlign(model, 0.1)

    def loss_fn(x):
        y = F.linear(x.to(dtype), model.weight.to(dtype), model.bias.to(dtype))
        return y.square().mean() + torch.ones(3, requires_grad=True).bfloat16().sum() + y.bfloat16().sum()

    aligner.backward(loss_fn, list(torch.randn(4, 5, 3)))
    assert aligner.stats.radius == 0.01


LSTM = 2  # among cuDNN's kinds of RNN


def loss_of_cudnn(layers, dropout, train):
    """A loss behind cuDNN's LSTM, whose graph can be made without a GPU."""
    lstm = nn.LSTM(3, 4, num_layers=layers, device="meta")
    x, state = torch.ones(5, 2, 3, device="meta"), torch.zeros(layers, 2, 4, device="meta")
    sizes = (LSTM, 4, 0, layers, False, dropout, train, False, [], None)
    out, *_ = torch._cudnn_rnn(x, list(lstm.parameters()), 4, None, state, state, *sizes)
    return lstm, out.sum()


@pytest.mark.parametrize(
    ("layers", "dropout", "train", "own"),
    [(2, 0.5, True, True), (1, 0.5, True, False), (2, 0.0, True, False), (2, 0.5, False, False)],
)
def test_masks_that_cudnn_draws_by_itself_are_seen(layers, dropout, train, own):
    lstm, loss = loss_of_cudnn(layers, dropout, train)
    found = graph.inspect_graph(loss, lstm.parameters())
    assert found.own_masks is own
    assert found.foreign_params == []


@pytest.mark.parametrize(
    ("options", "refused"),
    [({"weight": 0.1}, True), ({"weight": 0.0}, False), ({"weight": 0.1, "estimator": "momentum"}, False)],
)
def test_masks_that_a_second_pass_would_not_have_are_refused_where_there_is_one(monkeypatch, options, refused):
    look = graph.inspect_graph
    monkeypatch.setattr(graph, "inspect_graph", lambda *args: look(*args)._replace(own_masks=True))
    model = nn.Linear(3, 3)
    aligner = GradAlign(model, **options)
    batches = list(torch.randn(4, 5, 3))
    if refused:
        with pytest.raises(
            RuntimeError, match=r"got an RNN with dropout between its layers on a GPU, .*flags\(enabled=False\)"
        ):
            aligner.backward(lambda x: model(x).square().mean(), batches)
        assert model.weight.grad is None
    else:
        aligner.backward(lambda x: model(x).square().mean(), batches)


class Transposed(nn.Module):
    """Makes a parameter of its frozen weight in every forward, as PEFT's DoRA does with the weight of a Conv1D."""

    def __init__(self, kept=False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3), requires_grad=False)
        self.scale = nn.Parameter(torch.ones(3))
        self._kept = [nn.Parameter(self.weight.T)] if kept else []

    def forward(self, x):
        weight = self._kept[0] if self._kept else nn.Parameter(self.weight.T)
        return (x @ weight) * self.scale


@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_a_parameter_that_a_forward_makes_of_the_models_memory_is_none_to_train(weight):
    torch.manual_seed(0)
    model, batches = Transposed(), list(torch.randn(4, 5, 3))
    aligner = GradAlign(model, weight, objective="variance")
    for _ in range(3):
        aligner.backward(lambda x: model(x).square().mean(), batches)
        assert model.scale.grad is not None
        assert model.weight.grad is None
        model.zero_grad()


@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_one_that_is_made_of_a_trained_parameter_is_refused(weight):
    """Its gradient would be lost, and displacements would move it all the same."""
    model = Transposed()
    model.weight.requires_grad_(True)
    with pytest.raises(ValueError, match="also trains 1 that are not in it"):
        GradAlign(model, weight).backward(lambda x: model(x).square().mean(), list(torch.randn(4, 5, 3)))


def test_one_that_is_kept_is_refused():
    """Its `.grad` would be left with those of single passes, and somebody may step it."""
    model = Transposed(kept=True)
    with pytest.raises(ValueError, match="also trains tensors made outside loss_fn"):
        GradAlign(model, 0.1).backward(lambda x: model(x).square().mean(), list(torch.randn(4, 5, 3)))


def test_a_parameter_with_memory_of_its_own_is_refused_in_the_first_pass():
    model, other = nn.Linear(3, 3), nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match="also trains 1 that are not in it"):
        GradAlign(model, 0.0).backward(lambda x: (model(x) * other).square().mean(), list(torch.randn(4, 5, 3)))
