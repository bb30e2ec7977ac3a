"""Input validation of what a loss_fn returns and does."""

from __future__ import annotations

import copy

import pytest
import torch
from support.gradients import grads
from support.networks import Counting, make, state
from torch import nn

from gradalign import GradAlign
from gradalign.engine import losses


@pytest.mark.parametrize(
    ("make_loss", "error", "message"),
    [
        (lambda y: y, ValueError, r"expected a scalar tensor; got shape \(2, 3\)"),
        (lambda y: float(y.mean().detach()), TypeError, "expected a scalar tensor; got float"),
        (lambda y: (y.mean(), y), TypeError, "expected a scalar tensor; got tuple.*has_aux"),
        (lambda y: y.mean().detach(), ValueError, "expected a loss with a graph"),
        (lambda y: y.mean().to(torch.complex64), TypeError, "expected a real floating-point loss"),
    ],
)
@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_a_loss_that_is_no_scalar_with_a_graph(make_loss, error, message, weight):
    model, _, batches = make(Counting)
    before = state(model)
    with pytest.raises(error, match=message):
        GradAlign(model, weight).backward(lambda batch: make_loss(model(batch[0])[:2]), batches)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert grads(model) == [None, None]


@pytest.mark.parametrize("retain", [False, True])
@pytest.mark.parametrize("number", [1, 3, 4, 5])
def test_a_loss_fn_that_calls_backward(retain, number):
    model, loss_fn, batches = make(Counting)
    calls = 0

    def bad(batch):
        nonlocal calls
        calls += 1
        loss = loss_fn(batch)
        if calls == number:
            loss.backward(retain_graph=retain)
        return loss

    with pytest.raises(RuntimeError, match="expected a function that computes the loss and leaves .grad alone"):
        GradAlign(model, 0.1).backward(bad, batches)
    assert grads(model) == [None, None]


def test_has_aux_expects_a_pair():
    model, loss_fn, batches = make(Counting)
    with pytest.raises(TypeError, match=r"expected \(loss, aux\) with has_aux=True; got Tensor"):
        GradAlign(model, 0.1).backward(loss_fn, batches, has_aux=True)


@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_sparse_gradients_are_refused(weight):
    model = nn.Embedding(5, 2, sparse=True)
    with pytest.raises(TypeError, match="expected dense gradients; got torch.sparse_coo"):
        GradAlign(model, weight).backward(lambda i: model(i).square().mean(), [torch.tensor([i]) for i in range(4)])
    assert model.weight.grad is None


@pytest.mark.parametrize("estimator", ["split", "prefix", "leave_one_out", "momentum", "exact"])
@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_a_loss_that_trains_parameters_of_another_module_is_refused(estimator, weight):
    encoder, head = nn.Linear(3, 4), nn.Linear(4, 1)
    batches = list(torch.randn(4, 5, 3))

    def loss_fn(x):
        return head(encoder(x).tanh()).square().mean()

    with pytest.raises(ValueError, match=r"trains 2 that are not in it.*model=\[encoder, head\].*requires_grad_\(F"):
        GradAlign(encoder, weight, estimator=estimator).backward(loss_fn, batches)
    with pytest.raises(ValueError, match="trains 4 that are not in it"):
        GradAlign(copy.deepcopy(encoder), weight, estimator=estimator).backward(loss_fn, batches)
    assert all(p.grad is None for p in (*encoder.parameters(), *head.parameters()))
    GradAlign([encoder, head], weight, estimator=estimator).backward(loss_fn, batches)
    encoder.zero_grad()
    head.requires_grad_(False)
    GradAlign(encoder, weight, estimator=estimator).backward(loss_fn, batches)


@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_a_loss_that_reaches_no_parameter_is_refused(weight):
    model = nn.Linear(3, 1)
    with pytest.raises(ValueError, match="got one that reaches none of them"):
        GradAlign(model, weight).backward(lambda x: x.clone().requires_grad_().sum(), list(torch.randn(4, 3)))
    assert all(p.grad is None for p in model.parameters())


def test_a_loss_that_is_spread_over_ranks_is_refused_with_the_remedy():
    class Spread(torch.Tensor):
        placements = ()

    with pytest.raises(TypeError, match=r"got a DTensor, .*return loss.full_tensor\(\)"):
        losses.differentiable_scalar(torch.ones(()).as_subclass(Spread))
