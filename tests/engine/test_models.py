"""Input validation of the modules that are trained."""

from __future__ import annotations

import pytest
import torch
from support.networks import Counting, make
from torch import nn

from gradalign import GradAlign


def test_invalid_models_are_refused():
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


def test_hooks_that_consume_gradients_are_refused():
    model, loss_fn, batches = make(Counting)
    handle = model.linear.weight.register_post_accumulate_grad_hook(lambda p: None)
    with pytest.raises(ValueError, match="expected parameters without post-accumulate-grad hooks"):
        GradAlign(model, 0.1).backward(loss_fn, batches)
    handle.remove()
    GradAlign(model, 0.1).backward(loss_fn, batches)


def test_wrapped_modules_are_found_inside_others():
    class FullyShardedDataParallel(nn.Module):
        pass

    with pytest.raises(TypeError, match="got FullyShardedDataParallel"):
        GradAlign(nn.Sequential(nn.Linear(3, 1), FullyShardedDataParallel()), 0.1)
