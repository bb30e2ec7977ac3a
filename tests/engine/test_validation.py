"""Input validation: what was expected, what was got, what to do."""

from __future__ import annotations

import pytest
import torch
from support.gradients import grads
from support.networks import Counting, make, state
from torch import nn

from gradalign import GradAlign


def test_bad_models_are_told_expected_and_got():
    with pytest.raises(ValueError, match="expected a model with trainable parameters"):
        GradAlign(nn.Linear(2, 1).requires_grad_(False), 0.1)
    with pytest.raises(TypeError, match="model: expected an nn.Module or several; got int"):
        GradAlign(3, 0.1)
    with pytest.raises(TypeError, match="model: expected an nn.Module or several; got Parameter"):
        GradAlign(list(nn.Linear(2, 1).parameters()), 0.1)
    with pytest.raises(TypeError, match=r"expected real parameters; got torch.complex64"):
        GradAlign(nn.Linear(2, 1, dtype=torch.complex64), 0.1)
    with pytest.raises(ValueError, match="expected initialised parameters; got a lazy one"):
        GradAlign(nn.LazyLinear(2), 0.1)


@pytest.mark.parametrize("how", ["backward", "accumulate"])
def test_grad_not_none_on_entry_names_zero_grad_and_is_kept(how):
    model, loss_fn, batches = make(Counting)
    model.linear.bias.grad = torch.ones_like(model.linear.bias)
    aligner = GradAlign(model, 0.1)
    with pytest.raises(ValueError, match=r"optimizer\.zero_grad\(\)"):
        aligner.backward(loss_fn, batches) if how == "backward" else aligner.accumulate(4).__enter__()
    assert torch.equal(model.linear.bias.grad, torch.ones_like(model.linear.bias))


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        ([], ValueError, "micro_batches: expected at least 2"),
        ([torch.randn(2, 6)], ValueError, "micro_batches: expected at least 2.*; got 1"),
        (torch.randn(8, 6), TypeError, "micro_batches: expected a list of micro-batches; got Tensor.*gradalign.chunk"),
        ({"x": torch.randn(8, 6)}, TypeError, "micro_batches: expected a list of micro-batches; got dict"),
        (3, TypeError, "micro_batches: expected a list"),
    ],
)
def test_bad_micro_batches(batches, error, message):
    model = nn.Linear(6, 1)
    with pytest.raises(error, match=message):
        GradAlign(model, 0.1).backward(lambda x: model(x).mean(), batches)


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


def test_has_aux_wants_a_pair():
    model, loss_fn, batches = make(Counting)
    with pytest.raises(TypeError, match=r"expected \(loss, aux\) with has_aux=True; got Tensor"):
        GradAlign(model, 0.1).backward(loss_fn, batches, has_aux=True)


@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_sparse_gradients_are_refused(weight):
    model = nn.Embedding(5, 2, sparse=True)
    with pytest.raises(TypeError, match="expected dense gradients; got torch.sparse_coo"):
        GradAlign(model, weight).backward(lambda i: model(i).square().mean(), [torch.tensor([i]) for i in range(4)])
    assert model.weight.grad is None


def test_hooks_that_consume_gradients_are_refused():
    model, loss_fn, batches = make(Counting)
    handle = model.linear.weight.register_post_accumulate_grad_hook(lambda p: None)
    with pytest.raises(ValueError, match="expected parameters without post-accumulate-grad hooks"):
        GradAlign(model, 0.1).backward(loss_fn, batches)
    handle.remove()
    GradAlign(model, 0.1).backward(loss_fn, batches)


def test_reduction_and_scaler_are_checked():
    model, loss_fn, batches = make(Counting)
    with pytest.raises(ValueError, match="reduction: expected one of 'mean', 'sum'; got 'max'"):
        GradAlign(model, 0.1).backward(loss_fn, batches, reduction="max")

    class Accelerator:
        scaler = torch.amp.GradScaler("cpu")

        def backward(self, loss):
            loss.backward()

    with pytest.raises(ValueError, match="scaler: expected one GradScaler"):
        GradAlign(model, 0.1, scaler=torch.amp.GradScaler("cpu")).backward(
            loss_fn, batches, backward=Accelerator().backward
        )


def test_likely_slips_are_told_what_to_pass():
    model, loss_fn, batches = make(Counting)
    aligner = GradAlign(model, 0.1)
    with pytest.raises(TypeError, match="loss_fn: expected a function that computes the loss; got Tensor"):
        aligner.backward(loss_fn(batches[0]), batches)
    with pytest.raises(TypeError, match="loss_fn: expected a function that computes the loss; got list"):
        aligner.backward(batches, loss_fn)
    with aligner.accumulate(4) as step:
        with pytest.raises(TypeError, match=r"closure: .*got Tensor; pass lambda: loss_fn\(micro_batch\)"):
            step.backward(loss_fn(batches[0]).detach())
        for batch in batches:  # nothing was lost
            step.backward(lambda batch=batch: loss_fn(batch))
    model.zero_grad()
    aligner.backward(loss_fn, batches, tasks=(name for name in "abab"))
    assert aligner.stats.tasks == ("a", "b")
    with pytest.raises(TypeError, match="load_state_dict: expected the state_dict of a GradAlign; got NoneType"):
        aligner.load_state_dict(None)
    with pytest.raises(TypeError, match="scaler: expected a torch.amp.GradScaler or None; got str"):
        GradAlign(model, 0.1, scaler="x")
    for name in ("telemetry", "zeroed_grads"):
        with pytest.raises(TypeError, match=f"{name}: expected True or False; got 'x'"):
            GradAlign(model, 0.1, **{name: "x"})


def test_wrapped_modules_are_found_inside_others():
    class FullyShardedDataParallel(nn.Module):
        pass

    with pytest.raises(TypeError, match="got FullyShardedDataParallel"):
        GradAlign(nn.Sequential(nn.Linear(3, 1), FullyShardedDataParallel()), 0.1)
