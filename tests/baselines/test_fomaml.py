from __future__ import annotations

import pytest
import torch
from support import baseline_equations as equations
from support.baseline_comparison import both, mask_of, relative
from support.networks import Awkward, Counting, Spectral, make

from gradalign.baselines import FOMAML


@pytest.mark.parametrize("how", ["backward", "accumulate"])
@pytest.mark.parametrize("k", [2, 5])
@pytest.mark.parametrize("kind", [Awkward, Spectral, Counting])
def test_it_is_the_last_gradient_after_inner_steps(kind, k, how):
    model, loss_fn, batches = make(kind, k=k)
    method = FOMAML(model, inner_lr=0.1)
    found, expected, loss, losses = both(model, method, loss_fn, batches, equations.fomaml, how=how, inner_lr=0.1)
    assert relative(found, expected) < 1e-12
    assert float(loss) == pytest.approx(float(losses.mean()), rel=1e-12)
    assert method.stats.passes == k


def test_inner_steps_move_the_chosen_parameters_only():
    model, loss_fn, batches = make(Awkward)
    subset = [model.head.weight, model.conv.bias]
    method = FOMAML(model, inner_lr=0.5, params=subset)
    mask = mask_of(model, subset)
    found, expected, _, _ = both(model, method, loss_fn, batches, equations.fomaml, inner_lr=0.5, mask=mask)
    assert relative(found, expected) < 1e-12


def test_a_parameter_that_only_inner_batches_reach_has_no_gradient():
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 1), "b": torch.nn.Linear(2, 1)})
    FOMAML(model, inner_lr=0.1).backward(lambda name: model[name](torch.ones(2)).sum() ** 2, ["a", "b"])
    assert model["a"].weight.grad is None
    assert model["b"].weight.grad is not None


def test_the_number_of_micro_batches_is_exact_in_every_default_dtype(default_dtype):
    model = torch.nn.Linear(2, 1)
    gradients = []
    for default in (torch.float32, torch.bfloat16):
        default_dtype(default)
        method = FOMAML(model, inner_lr=1e-3)
        method.backward(lambda x: model(x).square().sum(), [torch.ones(2, dtype=torch.float32)] * 257)
        gradients.append(model.weight.grad)
        model.zero_grad()
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=0)


def test_inner_lr_is_checked():
    with pytest.raises(ValueError, match="inner_lr: expected a finite number above 0"):
        FOMAML(torch.nn.Linear(2, 1), inner_lr=0)
