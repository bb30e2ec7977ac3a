"""`prefix`: every micro-batch is compared with all before it."""

from __future__ import annotations

import pytest
import torch
from support.estimator_checks import FORMS, Case, check_heads, check_mean_over_orders, check_replay, check_term
from support.measure import OBJECTIVES
from support.networks import Awkward, Counting, Spectral, make

from gradalign import GradAlign
from gradalign.estimators import Prefix


def pairs(k):
    return [(i, list(range(i)), 2 * i / (k * (k - 1))) for i in range(1, k)]


CASE = Case({"estimator": "prefix"}, pairs, lambda k: (2 * k - 1, 3 * k - 2))


@pytest.mark.parametrize(("normalize", "difference", "telemetry"), FORMS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_term_is_that_of_double_backward(objective, normalize, difference, telemetry):
    check_term(CASE, objective, normalize, difference, telemetry)


@pytest.mark.parametrize("kind", [Spectral, Counting])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_displaced_passes_replay_random_numbers_and_buffers(objective, kind):
    check_replay(CASE, objective, kind)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_averaged_over_all_orders_it_is_the_gradient_of_A(objective):  # noqa: N802
    check_mean_over_orders(CASE.options, objective)


@pytest.mark.parametrize("normalize", ["none", "direction"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_heads_that_only_later_micro_batches_reach_count_as_zero_before(objective, normalize):
    check_heads(CASE, objective, normalize)


def block_pairs(block):
    """Those of a block are compared with all blocks before it."""

    def of(k):
        firsts = [i - i % block for i in range(k)]
        return [(i, list(range(first)), first / sum(firsts)) for i, first in enumerate(firsts) if first]

    return of


BLOCKS = {
    block: Case({"estimator": Prefix(block=block)}, block_pairs(block), lambda k, b=block: (2 * k - b, 3 * k - 2 * b))
    for block in (2, 3, 4)
}


@pytest.mark.parametrize(("normalize", "difference", "telemetry"), FORMS)
@pytest.mark.parametrize("objective", ["dot", "norm"])
@pytest.mark.parametrize("block", BLOCKS)
def test_the_term_of_blocks_is_that_of_double_backward(block, objective, normalize, difference, telemetry):
    check_term(BLOCKS[block], objective, normalize, difference, telemetry)


@pytest.mark.parametrize("kind", [Spectral, Counting])
@pytest.mark.parametrize("block", BLOCKS)
def test_the_passes_of_a_block_replay_random_numbers_and_buffers(block, kind):
    check_replay(BLOCKS[block], "dot", kind)


@pytest.mark.parametrize("objective", ["dot", "norm"])
@pytest.mark.parametrize("block", [2, 3])
def test_averaged_over_all_orders_blocks_give_the_gradient_of_A(block, objective):  # noqa: N802
    check_mean_over_orders(BLOCKS[block].options, objective)


@pytest.mark.parametrize("block", BLOCKS)
def test_heads_that_only_later_blocks_reach_count_as_zero_before(block):
    check_heads(BLOCKS[block], "dot", "none")


@pytest.mark.parametrize("difference", ["forward", "central"])
@pytest.mark.parametrize("block", [2, 4])
def test_blocks_one_micro_batch_at_a_time(block, difference):
    """Parameters are at theta in between, and the gradient is that of all at once."""
    model, loss_fn, batches = make(Awkward, k=7)
    model.eval()
    options = {"estimator": Prefix(block=block), "difference": difference}
    whole, one_by_one = (GradAlign(model, 0.1, **options) for _ in range(2))
    whole.backward(loss_fn, batches)
    expected = [p.grad for p in model.parameters()]
    model.zero_grad()
    theta = [p.detach().clone() for p in model.parameters()]
    with one_by_one.accumulate(len(batches)) as step:
        for batch in batches:
            step.backward(lambda batch=batch: loss_fn(batch))
            assert all(torch.equal(p, t) for p, t in zip(model.parameters(), theta, strict=True))
    for p, g in zip(model.parameters(), expected, strict=True):
        assert (p.grad is None and g is None) or torch.allclose(p.grad, g, rtol=1e-9, atol=1e-12)
    assert one_by_one.stats.passes == whole.stats.passes


def test_blocks_that_cannot_be_compared_are_refused():
    model, loss_fn, batches = make(Counting, k=4)
    for objective in ("variance", "cosine"):
        with pytest.raises(
            ValueError, match=f'"prefix" with block=2: expected objective "dot" or "norm"; got "{objective}"'
        ):
            GradAlign(model, 0.1, estimator=Prefix(block=2), objective=objective)
    with pytest.raises(ValueError, match="block: expected"):
        Prefix(block=0)
    with pytest.raises(TypeError, match="block: expected"):
        Prefix(block=2.0)
    with pytest.raises(ValueError, match="block=4: expected more micro-batches than one block has; got 4"):
        GradAlign(model, 0.1, estimator=Prefix(block=4)).backward(loss_fn, batches)
    assert all(p.grad is None for p in model.parameters())
