"""Input validation: what was expected, what was got, what to do."""

from __future__ import annotations

import pytest
import torch
from support.networks import Counting, make
from torch import nn
from torch.utils.data import DataLoader

from gradalign import GradAlign
from gradalign.engine.validation import count, finite, flag, fraction, micro_batches, one_of, positive, real


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        ([], ValueError, "micro_batches: expected at least 2"),
        ([torch.randn(2, 6)], ValueError, "micro_batches: expected at least 2.*; got 1"),
        (torch.randn(8, 6), TypeError, "micro_batches: expected a list of micro-batches; got Tensor.*gradalign.chunk"),
        ({"x": torch.randn(8, 6)}, TypeError, "micro_batches: expected a list of micro-batches; got dict"),
        (3, TypeError, "micro_batches: expected a list"),
        (
            DataLoader(torch.randn(8, 6), 2),
            TypeError,
            "micro_batches: .*; got a DataLoader.*iterate it, .*gradalign.chunk",
        ),
        (
            [torch.randn(8, 6), torch.arange(8)],
            ValueError,
            r"micro_batches: .*one batch \(\(8, 6\) float32, \(8,\) int64\); split it with gradalign.chunk\(batch, k\)",
        ),
        ((torch.randn(8, 6), torch.randn(8)), ValueError, "micro_batches: .*one batch"),
    ],
)
def test_invalid_micro_batches_are_refused(batches, error, message):
    model = nn.Linear(6, 1)
    with pytest.raises(error, match=message):
        GradAlign(model, 0.1).backward(lambda x: model(x).mean(), batches)


@pytest.mark.parametrize(
    "batches",
    [
        [torch.randn(4, 6), torch.randn(4, 6)],
        [torch.randn(4, 3, 6), torch.randn(3, 6)],
        [torch.randn(1, 6), torch.randn(1, 1, 6)],
        [(torch.randn(4, 6), torch.arange(4))] * 2,
        [torch.tensor(1.0), torch.tensor(2)],
        DataLoader(torch.randn(4, 6), 2).__iter__(),
    ],
)
def test_what_can_be_micro_batches_is_accepted(batches):
    assert len(micro_batches(batches)) == 2


def test_likely_mistakes_are_refused_with_the_remedy():
    model, loss_fn, batches = make(Counting)
    aligner = GradAlign(model, 0.1)
    with pytest.raises(TypeError, match="loss_fn: expected a function that computes the loss; got Tensor"):
        aligner.backward(loss_fn(batches[0]), batches)
    with pytest.raises(TypeError, match="loss_fn: expected a function that computes the loss; got list"):
        aligner.backward(batches, loss_fn)
    with aligner.accumulate(4) as step:
        with pytest.raises(TypeError, match=r"closure: .*got Tensor; pass lambda: loss_fn\(micro_batch\)"):
            step.backward(loss_fn(batches[0]).detach())
        for batch in batches:  # nothing was lost
            step.backward(lambda batch=batch: loss_fn(batch))
    model.zero_grad()
    aligner.backward(loss_fn, batches, tasks=(name for name in "abab"))
    assert aligner.stats.tasks == ("a", "b")
    with pytest.raises(TypeError, match="load_state_dict: expected the state_dict of a GradAlign; got NoneType"):
        aligner.load_state_dict(None)
    with pytest.raises(TypeError, match="scaler: expected a torch.amp.GradScaler or None; got str"):
        GradAlign(model, 0.1, scaler="x")
    for name in ("telemetry", "zeroed_grads"):
        with pytest.raises(TypeError, match=f"{name}: expected True or False; got 'x'"):
            GradAlign(model, 0.1, **{name: "x"})


@pytest.mark.parametrize(
    ("check", "given", "found"),
    [
        (lambda v: one_of("kind", v, ("a", "b")), "a", "a"),
        (lambda v: real("x", v), 3, 3.0),
        (lambda v: positive("x", v, "a length"), 0.5, 0.5),
        (lambda v: finite("x", v), -2, -2.0),
        (lambda v: count("n", v, least=0), 0, 0),
        (lambda v: fraction("share", v), 1, 1.0),
        (lambda v: flag("on", v), False, False),
    ],
)
def test_a_valid_value_comes_back(check, given, found):
    assert (check(given), type(check(given))) == (found, type(found))


@pytest.mark.parametrize(
    ("check", "given", "error", "message"),
    [
        (lambda v: one_of("kind", v, ("b", "a")), "c", ValueError, "kind: expected one of 'a', 'b'; got 'c'"),
        (lambda v: real("x", v), "3", TypeError, r"x: expected a number; got str \('3'\)"),
        (lambda v: real("x", v), torch.ones(()), TypeError, r"x: expected a number; got Tensor"),
        (lambda v: real("x", v), True, TypeError, r"x: expected a number; got bool \(True\)"),
        (
            lambda v: positive("x", v, "a length"),
            0.0,
            ValueError,
            r"x: expected a finite number above 0 \(a length\); got 0.0",
        ),
        (lambda v: finite("x", v), float("inf"), ValueError, "x: expected a finite number; got inf"),
        (lambda v: count("n", v, least=2), 1, ValueError, "n: expected an integer of at least 2; got 1"),
        (lambda v: count("n", v, least=2), 2.0, TypeError, "n: expected an integer of at least 2; got 2.0"),
        (lambda v: count("n", v, least=0), True, TypeError, "n: expected an integer of at least 0; got True"),
        (lambda v: fraction("share", v), 1.5, ValueError, "share: expected a number above 0 and at most 1; got 1.5"),
        (lambda v: flag("on", v), 1, TypeError, "on: expected True or False; got 1"),
    ],
)
def test_an_invalid_value_is_named_with_what_was_expected(check, given, error, message):
    with pytest.raises(error, match=f"^{message}"):
        check(given)
