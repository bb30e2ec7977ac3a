"""What the benchmarks hold against gradalign is what its equations say, and leaves the parameters as it should."""

from __future__ import annotations

import pytest
import torch
from support import oracle
from support.networks import trainable
from torch import nn

import gradalign
from benchmarks.reference_methods import FiniteDifference, Fishr, FullHessian, IRMv1, NaiveDoubleBackward, TwoStepSAM

K = 8


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Dropout(0.2), nn.Linear(5, 1)).double()


@pytest.fixture
def batches():
    return list(torch.randn(K, 6, 4, dtype=torch.float64))


def loss_of(model):
    return lambda x: model(x).square().mean()


def filled(model, method, batches):
    before = [p.detach().clone() for p in model.parameters()]
    torch.manual_seed(1)
    method.fill(batches)
    for p, value in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, value)
    found = oracle.flat([p.grad for p in trainable(model)], trainable(model))
    model.zero_grad()
    return found


def test_two_step_sam_is_the_gradient_uphill(model, batches):
    model.eval()
    found = filled(model, TwoStepSAM(model, loss_of(model), torch.optim.SGD(model.parameters()), rho=0.1), batches)
    params = trainable(model)
    _, values, _ = oracle.gradients(model, loss_of(model), batches)
    up = values.mean(0) / values.mean(0).norm()
    with torch.no_grad():
        for p, d in zip(params, up.split([p.numel() for p in params]), strict=True):
            p += 0.1 * d.view_as(p)
    expected = oracle.gradients(model, loss_of(model), batches)[1].mean(0)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_the_naive_double_backward_is_the_exact_estimator_without_normalisation(model, batches):
    found = filled(model, NaiveDoubleBackward(model, loss_of(model), None, 0.3), batches)
    torch.manual_seed(1)
    aligner = gradalign.GradAlign(model, 0.3, normalize="none", estimator="exact", backend="reference")
    aligner.backward(loss_of(model), batches)
    expected = oracle.flat([p.grad for p in trainable(model)], trainable(model))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("how", ["loop", "foreach"])
def test_finite_difference_is_gradaligns_split(model, batches, how):
    found = filled(model, FiniteDifference(model, loss_of(model), None, 0.3, how), batches)
    torch.manual_seed(1)
    gradalign.GradAlign(model, 0.3, backend="reference").backward(loss_of(model), batches)
    expected = oracle.flat([p.grad for p in trainable(model)], trainable(model))
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-11)


@pytest.mark.slow
def test_compiled_finite_difference_is_the_loop(model, batches):
    loop, compiled = (
        filled(model, FiniteDifference(model, loss_of(model), None, 0.3, how), batches) for how in ("loop", "compile")
    )
    torch.testing.assert_close(compiled, loop, rtol=1e-8, atol=1e-11)


def test_full_hessian_is_the_oracles_term(model, batches):
    model.eval()
    method = FullHessian(model, loss_of(model), None, 0.3)
    found = filled(model, method, batches)
    gbar, term, _, _ = oracle.term(model, loss_of(model), batches, "dot", "direction", oracle.all_pairs(K))
    torch.testing.assert_close(found, gbar - 0.3 * term, rtol=1e-9, atol=1e-12)
    assert method.passes == K + K * len(gbar)


@pytest.fixture
def classifier():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


@pytest.fixture
def sources():
    return [(torch.randn(n, 3, dtype=torch.float64), torch.arange(n) % 2) for n in (5, 6)]


def cross_entropy_of(model):
    return lambda batch: nn.functional.cross_entropy(model(batch[0]), batch[1])


def irm_by_hand(model, batch):
    w = torch.ones((), dtype=torch.float64, requires_grad=True)
    loss = nn.functional.cross_entropy(w * model(batch[0]), batch[1])
    return torch.autograd.grad(loss, w, create_graph=True)[0].square()


def variance_by_hand(model, batch):
    last = list(model[-1].parameters())
    gradients = [
        torch.cat([g.reshape(-1) for g in torch.autograd.grad(cross_entropy_of(model)(one), last, create_graph=True)])
        for one in zip(batch[0].split(1), batch[1].split(1), strict=True)
    ]
    return torch.stack(gradients).var(0)


@pytest.mark.parametrize(("weight", "divided"), [(0.5, False), (0.5, True), (20.0, False), (20.0, True)])
@pytest.mark.parametrize("method", [IRMv1, Fishr])
def test_a_penalty_is_that_of_its_equation(classifier, sources, method, weight, divided):
    method(classifier, cross_entropy_of(classifier), None, weight, divided).fill(sources)
    found = oracle.flat([p.grad for p in classifier.parameters()], list(classifier.parameters()))
    mean = torch.stack([cross_entropy_of(classifier)(batch) for batch in sources]).mean()
    if method is IRMv1:
        penalty = torch.stack([irm_by_hand(classifier, batch) for batch in sources]).mean()
    else:
        variances = torch.stack([variance_by_hand(classifier, batch) for batch in sources])
        penalty = (variances - variances.mean(0)).square().sum(1).mean()
    divisor = max(1.0, weight) if divided else 1.0
    expected = torch.autograd.grad((mean + weight * penalty) / divisor, list(classifier.parameters()))
    torch.testing.assert_close(found, torch.cat([g.reshape(-1) for g in expected]), rtol=1e-9, atol=1e-12)


def test_a_penalty_leaves_no_hook_behind(classifier, sources):
    def broken(batch):
        classifier(batch[0])
        raise RuntimeError("broken")

    for method in (IRMv1, Fishr):
        with pytest.raises(RuntimeError, match="broken"):
            method(classifier, broken, None, 1.0).fill(sources)
    assert not classifier[-1]._forward_hooks
