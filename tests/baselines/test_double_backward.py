from __future__ import annotations

import pytest
import torch
from support import baseline_equations as equations
from support import oracle
from support.baseline_comparison import both, filled, mask_of, relative
from support.networks import Awkward, Counting, Spectral, make, state
from torch import nn

from gradalign.baselines import DoubleBackward

OBJECTIVES = ("dot", "norm", "variance", "cosine")
NORMALIZATIONS = ("none", "direction", "gradient")


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("kind", [Awkward, Spectral, Counting])
def test_it_is_the_gradient_of_A_over_all_pairs(kind, objective, normalize):  # noqa: N802
    model, loss_fn, batches = make(kind)
    options = {"weight": 0.3, "objective": objective, "normalize": normalize}
    method = DoubleBackward(model, **options)
    found, expected, loss, losses = both(model, method, loss_fn, batches, equations.aligned, **options)
    assert relative(found, expected) < 1e-10
    assert float(loss) == pytest.approx(float(losses.mean()), rel=1e-12)


def test_A_is_measured_on_the_chosen_parameters():  # noqa: N802
    model, loss_fn, batches = make(Awkward)
    subset = [model.head.weight, model.conv.bias]
    options = {"weight": 0.3, "objective": "variance", "normalize": "none"}
    method, mask = DoubleBackward(model, params=subset, **options), mask_of(model, subset)
    found, expected, _, _ = both(model, method, loss_fn, batches, equations.aligned, mask=mask, **options)
    assert relative(found, expected) < 1e-10


def test_statistics_are_exact():
    model, loss_fn, batches = make(Awkward, k=5)
    before = state(model)
    torch.manual_seed(1)
    _, term, g, _ = oracle.term(model, loss_fn, batches, "dot", "none", oracle.all_pairs(5))
    model.load_state_dict(before)
    torch.manual_seed(1)
    method = DoubleBackward(model, 0.1, normalize="none")
    method.backward(loss_fn, batches)
    pairs = (g @ g.T)[~torch.eye(5, dtype=torch.bool)]
    assert float(method.stats.dot) == pytest.approx(float(pairs.mean()), rel=1e-9)
    assert float(method.stats.term_norm) == pytest.approx(float(term.norm()), rel=1e-9)
    assert method.stats.passes == 10


def test_the_weight_may_change_with_the_step():
    model, loss_fn, batches = make(Counting)
    fixed, fixed_loss, _ = make(Counting)
    method = DoubleBackward(model, lambda step: 0.2 * step)
    found = []
    for _ in range(2):
        method.backward(loss_fn, batches)
        found.append(filled(model))
        model.zero_grad()
    for batch in batches:  # the plain loop moves the buffers on
        fixed_loss(batch)
    DoubleBackward(fixed, 0.2).backward(fixed_loss, batches)
    assert relative(found[1], filled(fixed)) < 1e-12
    assert relative(found[0], found[1]) > 1e-3
    with pytest.raises(ValueError, match=r"weight\(step\): expected a finite number"):
        DoubleBackward(model, lambda step: float("inf")).backward(loss_fn, batches)


def test_fused_attention_is_told_what_to_do():
    model = nn.Linear(4, 4)

    def loss_fn(x):
        q = model(x)
        return nn.functional.scaled_dot_product_attention(q, q, q).square().sum()

    with pytest.raises(RuntimeError, match="expected twice differentiable operations; got: .* use eager attention"):
        DoubleBackward(model, 0.1).backward(loss_fn, list(torch.randn(2, 1, 2, 3, 4)))
    assert model.weight.grad is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": float("nan")}, "weight: expected a finite number"),
        ({"weight": 1.0, "objective": "angle"}, "objective: expected one of"),
        ({"weight": 1.0, "normalize": "length"}, "normalize: expected one of"),
    ],
)
def test_arguments_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        DoubleBackward(nn.Linear(2, 1), **options)
