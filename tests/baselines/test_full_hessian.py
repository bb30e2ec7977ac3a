from __future__ import annotations

import pytest
import torch
from support import baseline_equations as equations
from support.baseline_comparison import both, mask_of, relative
from support.networks import Awkward, Counting, Spectral, make
from torch import nn

from gradalign.baselines import FullHessian
from gradalign.baselines.full_hessian import Formed


@pytest.mark.parametrize("normalize", ["none", "direction", "gradient"])
@pytest.mark.parametrize("objective", ["dot", "norm", "variance", "cosine"])
@pytest.mark.parametrize("kind", [Spectral, Counting])
def test_it_is_the_gradient_of_A_over_all_pairs(kind, objective, normalize):  # noqa: N802
    model, loss_fn, batches = make(kind, k=3)
    options = {"weight": 0.3, "objective": objective, "normalize": normalize}
    method = FullHessian(model, **options)
    found, expected, loss, losses = both(model, method, loss_fn, batches, equations.aligned, **options)
    assert relative(found, expected) < 1e-10
    assert float(loss) == pytest.approx(float(losses.mean()), rel=1e-12)


def test_A_is_measured_on_the_chosen_parameters():  # noqa: N802
    model, loss_fn, batches = make(Awkward, k=2, rows=2)
    subset = [model.head.weight, model.conv.bias]
    options = {"weight": 0.3, "objective": "variance", "normalize": "none"}
    method, mask = FullHessian(model, params=subset, **options), mask_of(model, subset)
    found, expected, _, _ = both(model, method, loss_fn, batches, equations.aligned, mask=mask, **options)
    assert relative(found, expected) < 1e-10


def test_the_matrix_is_that_of_torch_func(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 13), nn.Tanh(), nn.Linear(13, 1)).double()  # 65 elements: more than ROWS at once
    batches = list(torch.randn(2, 4, 5, dtype=torch.float64))
    formed, form = [], Formed.hessian
    monkeypatch.setattr(Formed, "hessian", lambda self, graph: formed.append(form(self, graph)) or formed[-1])
    method = FullHessian(model, 0.1)
    method.backward(lambda x: model(x).square().mean(), batches, reduction="sum")
    names, shapes = zip(*((name, p.shape) for name, p in model.named_parameters()), strict=True)

    def loss_of(flat, x):
        parts = [part.view(s) for part, s in zip(flat.split([s.numel() for s in shapes]), shapes, strict=True)]
        return torch.func.functional_call(model, dict(zip(names, parts, strict=True)), (x,)).square().mean()

    theta = equations.flat_params(model)
    for hessian, x in zip(formed, batches, strict=True):
        torch.testing.assert_close(hessian, torch.func.hessian(loss_of)(theta, x), rtol=1e-10, atol=1e-12)
    assert method.stats.passes == 2 + 2 * len(theta)


def test_fused_attention_is_told_what_to_do():
    model = nn.Linear(4, 4)

    def loss_fn(x):
        q = model(x)
        return nn.functional.scaled_dot_product_attention(q, q, q).square().sum()

    with pytest.raises(RuntimeError, match="FullHessian: expected twice differentiable operations; got: "):
        FullHessian(model, 0.1).backward(loss_fn, list(torch.randn(2, 1, 2, 3, 4)))
    assert model.weight.grad is None


def test_a_large_model_is_refused():
    with pytest.raises(
        ValueError, match="expected at most max_numel = 20 trainable scalars; got n = 110, whose Hessian"
    ):
        FullHessian(nn.Linear(10, 10), 0.1, max_numel=20)
    model = nn.Linear(10, 10).requires_grad_(False)
    model.bias.requires_grad_(True)
    method = FullHessian(model, 0.1, max_numel=20)
    model.weight.requires_grad_(True)
    with pytest.raises(ValueError, match="use DoubleBackward or GradAlign, or a larger max_numel"):
        method.backward(lambda x: model(x).sum(), list(torch.randn(2, 3, 10)))
