"""A step that is struck leaves nothing behind, also where a second interrupt comes while it is rolled back."""

from __future__ import annotations

import sys

import pytest
import torch
from support.networks import Awkward, Counting, make, state
from torch import nn

import gradalign
from gradalign.optim import AdamW


def struck(run, first, second):
    """Run it with a KeyboardInterrupt at line event `first` of the package, and one `second` line events after that."""
    count = 0

    def trace(frame, event, _arg):
        nonlocal count
        name = frame.f_code.co_filename
        if "gradalign" not in name or "tests" in name:
            return None
        if event == "line":
            count += 1
            if count in (first, first + second):
                raise KeyboardInterrupt
        return trace

    # An exception in a trace function ends tracing, so that the second one is set again from the first one's handler.
    def again(frame, event, arg):
        try:
            return trace(frame, event, arg)
        except KeyboardInterrupt:
            sys.settrace(again)
            caller = frame
            while caller is not None:
                caller.f_trace = again
                caller = caller.f_back
            raise

    sys.settrace(again)
    try:
        run()
    finally:
        sys.settrace(None)
    return count


@pytest.mark.parametrize("options", [{}, {"objective": "variance"}, {"estimator": "momentum"}], ids=str)
def test_a_second_interrupt_while_a_step_is_rolled_back_leaves_nothing(options):
    model, loss_fn, batches = make(Counting, k=3, dtype=torch.float32, rows=2)
    aligner = gradalign.GradAlign(model, 0.3, backend="reference", **options)
    for _ in range(2):
        aligner.backward(loss_fn, batches)
        model.zero_grad()
    before, done = state(model), aligner.num_steps
    mean = [None if m is None else m.clone() for m in aligner.state_dict().get("mean", [])]

    def step():
        aligner.backward(loss_fn, batches)

    total = struck(step, 10**9, 1)
    model.zero_grad()
    model.load_state_dict(before)
    aligner.load_state_dict({"num_steps": done} | ({"mean": mean} if mean else {}))
    for first in range(1, total, max(1, total // 12)):
        for second in range(1, 60, 3):
            with pytest.raises(KeyboardInterrupt):
                struck(step, first, second)
            after = state(model)
            assert all(torch.equal(after[name], before[name]) for name in before), (first, second)
            assert all(p.grad is None for p in model.parameters()), (first, second)
            assert (aligner.num_steps, aligner.displaced, torch.is_grad_enabled()) == (done, False, True), (
                first,
                second,
            )
            now = aligner.state_dict().get("mean", [])
            assert all(a is b is None or torch.equal(a, b) for a, b in zip(now, mean, strict=True)), (first, second)


def test_an_aborted_momentum_step_leaves_the_mean_of_past_gradients():
    def steps(fail):
        model, loss_fn, batches = make(Awkward, k=4, dtype=torch.float32)
        model.eval()
        aligner = gradalign.GradAlign(model, 0.3, estimator="momentum")
        for index in range(4):
            if fail and index == 2:
                with pytest.raises(ZeroDivisionError):
                    aligner.backward(lambda b: loss_fn(b) / (1 // (batches[3] is not b)), batches)
                aligner._watch.note = lambda *_, **__: 1 / 0  # after the mean took in the gradient
                with pytest.raises(ZeroDivisionError):
                    aligner.backward(loss_fn, batches)
                del aligner._watch.note
            aligner.backward(loss_fn, batches)
            found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
            model.zero_grad()
        return found

    assert all(map(torch.equal, steps(True), steps(False)))


@pytest.mark.parametrize("weight", [0.0, 0.03])
def test_masters_keep_what_a_forward_writes_into_its_parameters(weight):
    def run(aligned):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(6, 4, max_norm=1.0), nn.Flatten(), nn.Linear(8, 1)).to(torch.bfloat16)
        optimizer = AdamW(model.parameters(), lr=1e-2, master_weights=True)
        with torch.no_grad():
            model[0].weight.mul_(4)
        data = [torch.randint(6, (4, 2)) for _ in range(4)]
        aligner = gradalign.GradAlign(model, weight, optimizer=optimizer)
        for _ in range(3):
            if aligned:
                aligner.backward(lambda x: model(x).float().square().mean(), data)
            else:
                for x in data:
                    (model(x).float().square().mean() / 4).backward()
            optimizer.step()
            optimizer.zero_grad()
        for x in data:
            model(x)
        return model[0].weight.detach().float()

    rows = run(True)
    assert float(rows.norm(dim=1).max()) < 1.01
    if weight == 0:
        assert torch.equal(rows, run(False))


def test_the_mean_of_a_resized_parameter_starts_anew():
    model = nn.Linear(3, 2)
    aligner = gradalign.GradAlign(model, 0.1, estimator="momentum")
    aligner.backward(lambda x: model(x).square().mean(), list(torch.randn(4, 5, 3)))
    model.zero_grad()
    model.weight.data, model.bias.data = torch.randn(4, 3), torch.randn(4)
    with pytest.warns(UserWarning, match="momentum: expected parameters that keep their shape"):
        aligner.backward(lambda x: model(x).square().mean(), list(torch.randn(4, 5, 3)))
    assert [m.shape for m in aligner.state_dict()["mean"]] == [(4, 3), (4,)]


def test_a_bad_mean_leaves_the_aligner_as_it_was():
    model = nn.Linear(3, 2)
    aligner = gradalign.GradAlign(model, 0.1, estimator="momentum")
    with pytest.raises(TypeError, match="mean"):
        aligner.load_state_dict({"num_steps": 5, "mean": ["no tensor"]})
    assert aligner.num_steps == 0
