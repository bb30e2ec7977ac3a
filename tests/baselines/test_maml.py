from __future__ import annotations

import contextlib

import pytest
import torch
from support import baseline_equations as equations
from support.baseline_comparison import both, mask_of, relative
from support.networks import Awkward, Counting, Spectral, make, state
from torch import nn
from torch.utils.checkpoint import checkpoint

from gradalign.baselines import MAML


@pytest.mark.parametrize("how", ["backward", "accumulate"])
@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.parametrize("kind", [Awkward, Spectral, Counting])
def test_it_is_the_product_of_the_inner_steps_derivatives(kind, k, how):
    model, loss_fn, batches = make(kind, k=k)
    method = MAML(model, inner_lr=0.1)
    found, expected, loss, losses = both(model, method, loss_fn, batches, equations.maml, how=how, inner_lr=0.1)
    assert relative(found, expected) < 1e-10
    assert float(loss) == pytest.approx(float(losses.mean()), rel=1e-12)
    assert method.stats.passes == k


def test_inner_steps_move_the_chosen_parameters_only():
    model, loss_fn, batches = make(Spectral)
    subset = [model.norm.weight, model.second.bias]
    method, mask = MAML(model, inner_lr=0.5, params=subset), mask_of(model, subset)
    found, expected, _, _ = both(model, method, loss_fn, batches, equations.maml, inner_lr=0.5, mask=mask)
    assert relative(found, expected) < 1e-10


class Recurrent(nn.Module):
    """Keeps a list of its weights beside the attributes."""

    def __init__(self):
        super().__init__()
        self.cell = nn.LSTM(2, 3, batch_first=True)

    def forward(self, x):
        return self.cell(x.view(-1, 3, 2))[0][:, -1]


def test_weights_that_a_module_also_keeps_elsewhere_are_replaced_too():
    model, loss_fn, batches = make(Recurrent)
    found, expected, _, _ = both(model, MAML(model, inner_lr=0.5), loss_fn, batches, equations.maml, inner_lr=0.5)
    assert relative(found, expected) < 1e-10


def test_two_models_train_together():
    model, loss_fn, batches = make(Spectral)
    method = MAML([model.first, model.second, model.norm], inner_lr=0.1)
    found, expected, _, _ = both(model, method, loss_fn, batches, equations.maml, inner_lr=0.1)
    assert relative(found, expected) < 1e-10


def test_fused_attention_is_refused_with_the_remedy():
    model = nn.Linear(4, 4)
    before = state(model)

    def loss_fn(x):
        q = model(x)
        return nn.functional.scaled_dot_product_attention(q, q, q).square().sum()

    batches = list(torch.randn(2, 1, 2, 3, 4))
    with pytest.raises(
        RuntimeError, match="MAML: expected twice differentiable operations; got: .* use eager attention"
    ):
        MAML(model, inner_lr=0.1).backward(loss_fn, batches)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        MAML(model, inner_lr=0.1).backward(loss_fn, batches)
    assert float(model.weight.grad.norm()) > 0


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, g):
        return 2 * g * ctx.saved_tensors[0]


@pytest.mark.parametrize("inside", [torch.tanh, Doubled.apply])
@pytest.mark.parametrize("has_aux", [False, True])
@pytest.mark.parametrize("last_only", [False, True])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_checkpoint_is_refused_with_the_remedy(use_reentrant, last_only, has_aux, inside):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    batches = list(torch.randn(3, 4, 2))

    def loss_fn(x):
        h = model[0](x)
        y = inside(h)
        if not last_only or torch.equal(x, batches[-1]):
            y = checkpoint(inside, h, use_reentrant=use_reentrant)
        loss = model[1](y).square().mean()
        return (loss, None) if has_aux else loss

    with pytest.raises(RuntimeError, match="MAML: expected a loss_fn without checkpoints; .* or use FOMAML or Reptile"):
        MAML(model, inner_lr=0.1).backward(loss_fn, batches, has_aux=has_aux)
    assert all(p.grad is None for p in model.parameters())


def test_tensors_that_are_saved_on_another_device_are_no_checkpoint():
    gradients = []
    for on_cpu in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Linear(2, 1)
        with torch.autograd.graph.save_on_cpu() if on_cpu else contextlib.nullcontext():
            MAML(model, inner_lr=0.1).backward(
                lambda x, model=model: model(x).tanh().square().mean(), [torch.ones(2)] * 3
            )
        gradients.append(model.weight.grad)
    assert torch.equal(*gradients)


def test_an_interrupt_inside_functional_call_leaves_the_modules_their_parameters(monkeypatch):
    model, loss_fn, batches = make(Counting)
    own = dict(model.named_parameters())

    def interrupted(host, named, args):
        model.linear._parameters["weight"] = named["models.0.linear.weight"] * 2  # and never back
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.func, "functional_call", interrupted)
    with pytest.raises(KeyboardInterrupt):
        MAML(model, inner_lr=0.1).backward(loss_fn, batches)
    assert all(p is own[name] for name, p in model.named_parameters())
    assert len(list(model.parameters())) == 2


def test_inner_lr_is_checked():
    with pytest.raises(ValueError, match="inner_lr: expected a finite number above 0"):
        MAML(nn.Linear(2, 1), inner_lr=0)
