"""A step that is given one micro-batch at a time."""

from __future__ import annotations

import weakref
from functools import partial

import pytest
import torch
from support.gradients import assert_close, grads
from support.measure import OBJECTIVES
from support.networks import Awkward, Counting, make, state
from torch import nn

from gradalign import GradAlign


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("normalize", ["none", "direction", "gradient"])
@pytest.mark.parametrize("difference", ["forward", "central"])
@pytest.mark.parametrize("telemetry", [False, True])
def test_accumulate_gives_the_gradients_of_backward(objective, normalize, difference, telemetry):
    model, loss_fn, batches = make(Awkward, k=8)
    before, results = state(model), []
    for one_by_one in (False, True):
        model.load_state_dict(before)
        model.zero_grad()
        torch.manual_seed(4)
        options = {"objective": objective, "normalize": normalize, "difference": difference, "telemetry": telemetry}
        aligner = GradAlign(model, 0.3, **options)
        if one_by_one:
            with aligner.accumulate(8) as step:
                losses = [step.backward(lambda batch=batch: loss_fn(batch)) for batch in batches]
            loss = torch.stack(losses).mean()
        else:
            loss = aligner.backward(loss_fn, batches)
        results.append((grads(model), float(loss), aligner.stats.as_dict()))
    assert_close(results[0][0], results[1][0], rtol=1e-9)
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-12)
    for name, value in results[0][2].items():
        assert results[1][2][name] == (None if value is None else pytest.approx(value, rel=1e-6))


def test_between_two_visits_no_gradient_is_kept_for_nothing():
    model, loss_fn, batches = make(Counting, k=6)
    kept = []

    def watching(batch, before):
        kept.append(before is not None and before() is not None)
        return loss_fn(batch)

    with GradAlign(model, 0.3, objective="cosine", check_replay=False).accumulate(6) as step:
        for batch in batches:
            grad = model.linear.weight.grad
            before = None if grad is None else weakref.ref(grad)
            del grad
            step.backward(partial(watching, batch, before))
    # Forwards of four anchors and of two probes twice: the first gradient becomes the sum; the term is there until the end.
    assert kept == [False, True, False, False, False, False, True, True], kept


def test_accumulate_counts_its_calls():
    model, loss_fn, batches = make(Counting)
    aligner, before = GradAlign(model, 0.1), state(model)
    with pytest.raises(ValueError, match="k: expected an integer of at least 2; got 1"):
        aligner.accumulate(1)

    def few():
        with aligner.accumulate(4) as step:
            for batch in batches[:3]:
                step.backward(lambda batch=batch: loss_fn(batch))

    with pytest.raises(ValueError, match=r"expected k = 4 calls of step.backward; got 3; .grad is None"):
        few()
    assert grads(model) == [None, None]
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    with aligner.accumulate(4) as step:
        for batch in batches:
            step.backward(lambda batch=batch: loss_fn(batch))
        complete = grads(model)
        with pytest.raises(ValueError, match="got one more"):
            step.backward(lambda: loss_fn(batches[0]))
    assert_close(grads(model), complete, rtol=0)
    with pytest.raises(RuntimeError, match="expected a call inside"):
        step.backward(lambda: loss_fn(batches[0]))


def foreign_backward(model, optimizer, loss):
    loss.backward()


def foreign_step(model, optimizer, loss):
    optimizer.step()


def foreign_zero(model, optimizer, loss):
    optimizer.zero_grad()


def foreign_clip(model, optimizer, loss):
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)


@pytest.mark.parametrize(
    ("foreign", "changed"),
    [(foreign_backward, ".grad"), (foreign_step, "parameters"), (foreign_zero, ".grad"), (foreign_clip, ".grad")],
)
@pytest.mark.parametrize("at", [1, 3])
def test_changes_between_the_micro_batches_of_accumulate_are_refused(foreign, changed, at):
    model, loss_fn, batches = make(Counting)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    aligner = GradAlign(model, 0.1)

    def step_with_a_change():
        with aligner.accumulate(4) as step:
            for i, batch in enumerate(batches):
                if i == at:
                    foreign(model, optimizer, loss_fn(batch))
                    theta.update({name: p.clone() for name, p in model.named_parameters()})
                step.backward(lambda batch=batch: loss_fn(batch))

    theta = {}
    with pytest.raises(RuntimeError, match=f"to be left alone between.*got changed {changed};"):
        step_with_a_change()
    assert grads(model) == [None, None]
    assert all(torch.equal(p, theta[name]) for name, p in model.named_parameters())
    aligner.backward(loss_fn, batches)


def test_an_error_swallowed_inside_accumulate_does_not_make_a_step():
    model, loss_fn, batches = make(Counting)
    aligner = GradAlign(model, 0.1)

    def swallow():
        with aligner.accumulate(4) as step:
            step.backward(lambda: loss_fn(batches[0]))
            with pytest.raises(ZeroDivisionError):
                step.backward(lambda: 1 / 0)
            with pytest.raises(RuntimeError, match="after a failed one"):
                step.backward(lambda: loss_fn(batches[1]))

    with pytest.raises(ValueError, match="expected k = 4 calls"):
        swallow()
    assert grads(model) == [None, None]
