from __future__ import annotations

import pytest
import torch
from support import baseline_equations as equations
from support.baseline_comparison import both, mask_of, relative
from support.networks import Awkward, Counting, Spectral, make

from gradalign.baselines import SAM


@pytest.mark.parametrize("per_micro_batch", [False, True])
@pytest.mark.parametrize("k", [2, 5])
@pytest.mark.parametrize("kind", [Awkward, Counting])
def test_it_is_the_mean_gradient_uphill(kind, k, per_micro_batch):
    model, loss_fn, batches = make(kind, k=k)
    method = SAM(model, rho=0.3, per_micro_batch=per_micro_batch)
    found, expected, loss, losses = both(
        model, method, loss_fn, batches, equations.sam, rho=0.3, per_micro_batch=per_micro_batch
    )
    assert relative(found, expected) < 1e-12
    assert float(loss) == pytest.approx(float(losses.mean()), rel=1e-12)
    assert method.stats.passes == 2 * k
    assert method.stats.radius == 0.3
    assert float(method.stats.displacement_cosine) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("per_micro_batch", [False, True])
def test_second_passes_start_from_the_buffers_of_the_first(per_micro_batch):
    model, loss_fn, batches = make(Spectral, k=5)
    method = SAM(model, rho=1e-4, per_micro_batch=per_micro_batch)
    found, expected, _, _ = both(
        model, method, loss_fn, batches, equations.sam, rho=1e-4, per_micro_batch=per_micro_batch
    )
    # Chained second passes start from buffers that are O(rho) off; buffers put back once, before all of them, would be
    # off by as much as power iterations move them, 1e-1.
    assert relative(found, expected) < (1e-12 if per_micro_batch else 1e-3)


def test_per_micro_batch_they_can_come_one_at_a_time():
    model, loss_fn, batches = make(Spectral)
    method = SAM(model, rho=0.1, per_micro_batch=True)
    found, expected, _, _ = both(
        model, method, loss_fn, batches, equations.sam, how="accumulate", rho=0.1, per_micro_batch=True
    )
    assert relative(found, expected) < 1e-12


def test_the_mean_needs_all_micro_batches():
    method = SAM(torch.nn.Linear(2, 1))
    with pytest.raises(ValueError, match="accumulate: expected .* use backward"), method.accumulate(2):
        pass


def test_only_the_chosen_parameters_go_uphill():
    model, loss_fn, batches = make(Awkward)
    subset = [model.head.weight, model.conv.bias]
    method = SAM(model, rho=0.5, params=subset)
    found, expected, _, _ = both(model, method, loss_fn, batches, equations.sam, rho=0.5, mask=mask_of(model, subset))
    assert relative(found, expected) < 1e-12


def test_displaced_is_true_in_second_passes():
    model = torch.nn.Linear(3, 1)
    method, flags = SAM(model), []

    def loss_fn(x):
        flags.append(method.displaced)
        return model(x).square().mean()

    method.backward(loss_fn, list(torch.randn(3, 4, 3)))
    assert flags == [False] * 3 + [True] * 3


def test_a_zero_gradient_displaces_nothing():
    model = torch.nn.Linear(3, 1)
    SAM(model).backward(lambda x: model(x).square().mean() * 0, list(torch.randn(2, 4, 3)))
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in model.parameters())


def test_rho_is_checked():
    with pytest.raises(ValueError, match="rho: expected a finite number above 0"):
        SAM(torch.nn.Linear(2, 1), rho=0)
