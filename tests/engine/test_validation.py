"""Input validation: what was expected, what was got, what to do."""

from __future__ import annotations

import pytest
import torch
from support.networks import Counting, make
from torch import nn

from gradalign import GradAlign


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        ([], ValueError, "micro_batches: expected at least 2"),
        ([torch.randn(2, 6)], ValueError, "micro_batches: expected at least 2.*; got 1"),
        (torch.randn(8, 6), TypeError, "micro_batches: expected a list of micro-batches; got Tensor.*gradalign.chunk"),
        ({"x": torch.randn(8, 6)}, TypeError, "micro_batches: expected a list of micro-batches; got dict"),
        (3, TypeError, "micro_batches: expected a list"),
    ],
)
def test_bad_micro_batches(batches, error, message):
    model = nn.Linear(6, 1)
    with pytest.raises(error, match=message):
        GradAlign(model, 0.1).backward(lambda x: model(x).mean(), batches)


def test_likely_slips_are_told_what_to_pass():
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
