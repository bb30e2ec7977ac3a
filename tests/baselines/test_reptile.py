from __future__ import annotations

import pytest
import torch
from support import baseline_equations as equations
from support.baseline_comparison import both, filled, mask_of, relative
from support.networks import Awkward, Counting, Spectral, make

from gradalign.baselines import Reptile


@pytest.mark.parametrize("how", ["backward", "accumulate"])
@pytest.mark.parametrize("k", [2, 5])
@pytest.mark.parametrize("kind", [Awkward, Spectral, Counting])
def test_it_is_the_path_of_sgd_as_a_gradient(kind, k, how):
    model, loss_fn, batches = make(kind, k=k)
    method = Reptile(model, inner_lr=0.1)
    found, expected, loss, losses = both(model, method, loss_fn, batches, equations.reptile, how=how, inner_lr=0.1)
    assert relative(found, expected) < 1e-12
    assert float(loss) == pytest.approx(float(losses.mean()), rel=1e-12)
    assert method.stats.passes == k
    assert float(method.stats.grad_norm) == pytest.approx(float(expected.norm()), rel=1e-12)


def test_inner_steps_move_the_chosen_parameters_only():
    model, loss_fn, batches = make(Awkward)
    subset = [model.head.weight, model.conv.bias]
    mask = mask_of(model, subset)
    method = Reptile(model, inner_lr=0.5, params=subset)
    found, expected, _, losses = both(model, method, loss_fn, batches, equations.reptile, inner_lr=0.5, mask=mask)
    assert relative(found * mask, expected) < 1e-12
    assert float((found * (1 - mask)).norm()) > 0.01
    assert float(method.stats.loss) == pytest.approx(float(losses.mean()), rel=1e-12)


def test_bfloat16_gradients_do_not_suffer_from_a_difference_of_parameters():
    model, loss_fn, batches = make(Counting, dtype=torch.bfloat16)
    wide, wide_loss, wide_batches = make(Counting, dtype=torch.bfloat16)
    wide.double()
    method = Reptile(model, inner_lr=1e-3)
    method.backward(loss_fn, batches)
    Reptile(wide, inner_lr=1e-3).backward(wide_loss, [(x.double(), y) for x, y in wide_batches])
    assert relative(filled(model).double(), filled(wide)) < 0.02
    literal, _ = equations.reptile(model, loss_fn, batches, 1e-3)
    assert relative(literal.double(), filled(wide)) > 0.2
    # The path itself is below the resolution of the parameters, and the statistics say so.
    assert float(method.stats.displacement_cosine) < 0.9


@pytest.mark.parametrize(
    ("value", "error"), [(0.0, ValueError), (-1.0, ValueError), (float("nan"), ValueError), ("1", TypeError)]
)
def test_inner_lr_is_checked(value, error):
    with pytest.raises(error, match="inner_lr: expected a"):
        Reptile(torch.nn.Linear(2, 1), inner_lr=value)
