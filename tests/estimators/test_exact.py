"""`exact`: the term over all pairs by double backward."""

from __future__ import annotations

import pytest
import torch
from support import baseline_equations as equations
from support import oracle
from support.baseline_comparison import both, filled, mask_of, relative
from support.estimator_checks import FORMS, Case, check_any_order, check_heads, check_term, mean_dot
from support.measure import NORMALIZATIONS, OBJECTIVES
from support.networks import Awkward, Counting, Spectral, make, state
from support.one_step import run
from torch.utils.checkpoint import checkpoint

import gradalign

CASE = Case({"estimator": "exact"}, oracle.all_pairs, lambda k: (2 * k, 2 * k))


@pytest.mark.parametrize(("normalize", "difference", "telemetry"), FORMS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_term_is_that_of_double_backward(objective, normalize, difference, telemetry):
    check_term(CASE, objective, normalize, difference, telemetry)


@pytest.mark.parametrize("rows", [(2.0, 2.0, 2.0, 2.0), (1.0, 0.0, 1.0, 1.0), (1.0, 0.5, 2.0, 0.0)], ids=str)
@pytest.mark.parametrize("objective", ["dot", "variance"])
def test_hooks_on_gradients_are_those_of_finite_differences(objective, rows):
    """A hook changes every gradient, and so the difference of two; a row that it masks stays where it is."""
    factor = torch.tensor(rows).double()[:, None]
    terms, calls = [], []
    for estimator in ("exact", "leave_one_out"):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).double()
        model[0].weight.register_hook(lambda g: g * factor)
        model[0].weight.register_hook(lambda g: calls.append(1))
        x, found = list(torch.randn(4, 4, 3).double()), []
        for weight in (0.0, 1.0):
            options = {"normalize": "none", "difference": "central", "radius": 1e-4, "check_replay": False}
            aligner = gradalign.GradAlign(model, weight, estimator=estimator, objective=objective, **options)
            aligner.backward(lambda b, model=model: (model(b) - 1).square().mean(), x)
            found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
            model.zero_grad()
        terms.append(found[0] - found[1])
        assert len(model[0].weight._backward_hooks) == 2
    assert torch.allclose(*terms, rtol=1e-6, atol=1e-9)
    assert len(calls) == 4 + 8 + 4 + 12  # plain and exact; plain and leave_one_out's 3k


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_in_any_order_it_is_the_gradient_of_A(objective):  # noqa: N802
    check_any_order(CASE.options, objective)


@pytest.mark.parametrize("normalize", ["none", "direction"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_heads_that_only_later_micro_batches_reach_count_as_zero_before(objective, normalize):
    check_heads(CASE, objective, normalize)


def exact(model, weight, **options):
    return gradalign.GradAlign(model, weight, estimator="exact", **options)


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("kind", [Awkward, Spectral, Counting])
def test_it_is_the_gradient_of_A_over_all_pairs(kind, objective, normalize):  # noqa: N802
    model, loss_fn, batches = make(kind)
    options = {"weight": 0.3, "objective": objective, "normalize": normalize}
    found, expected, loss, losses = both(model, exact(model, **options), loss_fn, batches, equations.aligned, **options)
    assert relative(found, expected) < 1e-10
    assert float(loss) == pytest.approx(float(losses.mean()), rel=1e-12)


def test_A_is_measured_on_the_chosen_parameters():  # noqa: N802
    model, loss_fn, batches = make(Awkward)
    subset = [model.head.weight, model.conv.bias]
    options = {"weight": 0.3, "objective": "variance", "normalize": "none"}
    method, mask = exact(model, params=subset, **options), mask_of(model, subset)
    found, expected, _, _ = both(model, method, loss_fn, batches, equations.aligned, mask=mask, **options)
    assert relative(found, expected) < 1e-10


def test_statistics_are_exact():
    model, loss_fn, batches = make(Awkward, k=5)
    before = state(model)
    torch.manual_seed(1)
    _, term, g, _ = oracle.term(model, loss_fn, batches, "dot", "none", oracle.all_pairs(5))
    model.load_state_dict(before)
    torch.manual_seed(1)
    method = exact(model, 0.1, normalize="none")
    method.backward(loss_fn, batches)
    assert float(method.stats.dot) == pytest.approx(mean_dot(g), rel=1e-9)
    assert float(method.stats.term_norm) == pytest.approx(float(term.norm()), rel=1e-9)
    assert method.stats.passes == 10


def test_the_weight_may_change_with_the_step():
    model, loss_fn, batches = make(Counting)
    fixed, fixed_loss, _ = make(Counting)
    method = exact(model, lambda step: 0.2 * step)
    found = []
    for _ in range(2):
        method.backward(loss_fn, batches)
        found.append(filled(model))
        model.zero_grad()
    for batch in batches:  # the plain loop moves the buffers on
        fixed_loss(batch)
    exact(fixed, 0.2).backward(fixed_loss, batches)
    assert relative(found[1], filled(fixed)) < 1e-12
    assert relative(found[0], found[1]) > 1e-3


def test_fused_attention_is_refused_with_the_remedy():
    model = torch.nn.Linear(8, 8)

    def loss_fn(x):
        q = model(x)
        return torch.nn.functional.scaled_dot_product_attention(q, q, q).square().mean()

    with pytest.raises(RuntimeError, match=r"exact: expected twice differentiable operations; .*SDPBackend.MATH"):
        gradalign.GradAlign(model, 0.1, estimator="exact").backward(loss_fn, list(torch.randn(2, 1, 2, 5, 8)))
    assert model.weight.grad is None


def test_a_backward_that_would_never_be_called_is_refused():
    model, loss_fn, batches = make(Counting)
    aligner = gradalign.GradAlign(model, 0.1, estimator="exact")
    with pytest.raises(ValueError, match="backward: expected None with Exact"):
        aligner.backward(loss_fn, batches, backward=torch.Tensor.backward)
    aligner.backward(loss_fn, batches)


@pytest.mark.parametrize("how", ["backward", "accumulate"])
def test_buffers_behind_a_checkpoint_are_those_of_the_plain_loop(how):
    nets = []
    for aligned in (False, True):
        torch.manual_seed(0)
        block = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.2)).double()
        head = torch.nn.Linear(8, 1).double()

        def loss_fn(x, block=block, head=head):
            return head(checkpoint(block, x, use_reentrant=False).tanh()).square().mean()

        batches = list(torch.randn(3, 6, 4, dtype=torch.float64))
        if aligned:
            run(
                gradalign.GradAlign([block, head], 0.03, estimator="exact", objective="variance"), loss_fn, batches, how
            )
        else:
            for x in batches:
                loss_fn(x).backward()
        nets.append((block[1], torch.rand(3)))
    (plain, stream), (found, stream_found) = nets
    assert torch.equal(found.running_mean, plain.running_mean)
    assert int(found.num_batches_tracked) == int(plain.num_batches_tracked) == 6
    assert torch.equal(stream, stream_found)
