"""A step that is struck leaves nothing behind, also where a second interrupt comes while it is rolled back."""

from __future__ import annotations

import sys

import pytest
import torch
from support.networks import Awkward, Counting, make, state
from torch import nn

import gradalign
from gradalign.engine.method import Method
from gradalign.optim import AdamW


def struck(run, first, second):
    """Run it with a KeyboardInterrupt at line event `first` of the package, and one at event `second` of the roll-back.

    Returns:
        The line events of the run, and those of the roll-back up to the second interrupt.
    """
    counts, targets, roll_back = [0, 0], (first, second), Method._roll_back

    def trace(frame, event, _arg):
        name = frame.f_code.co_filename
        if "gradalign" not in name or "tests" in name:
            return None
        if event == "line":
            now = int(counts[0] >= first)
            counts[now] += 1
            if counts[now] == targets[now]:
                raise KeyboardInterrupt
        return trace

    # An exception in a trace function ends tracing, and only a later call can begin it again.
    def traced(*args):
        if counts[0] == first and not counts[1]:
            sys.settrace(trace)
        return roll_back(*args)

    Method._roll_back = traced
    sys.settrace(trace)
    try:
        run()
    except KeyboardInterrupt:
        if first > counts[0]:
            raise
    finally:
        sys.settrace(None)
        Method._roll_back = roll_back
    return counts


@pytest.mark.parametrize(
    ("num_firsts", "stride"), [(6, 7), pytest.param(4, 1, marks=pytest.mark.slow)], ids=["sampled", "every line"]
)
@pytest.mark.parametrize(
    "options", [{}, {"objective": "variance"}, {"estimator": "momentum"}, {"estimator": "leave_one_out"}], ids=str
)
def test_a_second_interrupt_while_a_step_is_rolled_back_leaves_nothing(options, num_firsts, stride):
    model, loss_fn, batches = make(Counting, k=3, dtype=torch.float32, rows=2)
    aligner = gradalign.GradAlign(model, 0.3, backend="reference", **options)
    for _ in range(2):
        aligner.backward(loss_fn, batches)
        model.zero_grad()
    before, done = state(model), aligner.num_steps
    mean = [None if m is None else m.clone() for m in aligner.state_dict().get("mean", [])]
    progress = aligner._progress  # so that every run looks as closely as the one whose lines are counted

    def step():
        aligner.backward(loss_fn, batches)

    total, _ = struck(step, 10**9, 1)
    model.zero_grad()
    model.load_state_dict(before)
    aligner.load_state_dict({"num_steps": done} | ({"mean": mean} if mean else {}))
    aligner._progress = progress
    struck_twice = 0
    for first in range(1, total, max(1, total // num_firsts)):
        for second in range(1, 400, stride):
            reached = struck(step, first, second)
            struck_twice += reached[1] == second
            after = state(model)
            assert all(torch.equal(after[name], before[name]) for name in before), (first, second)
            assert all(p.grad is None for p in model.parameters()), (first, second)
            assert (aligner.num_steps, aligner.displaced, torch.is_grad_enabled()) == (done, False, True), (
                first,
                second,
            )
            now = aligner.state_dict().get("mean", [])
            assert all(a is b is None or torch.equal(a, b) for a, b in zip(now, mean, strict=True)), (first, second)
            if reached[1] < second:  # the roll-back has fewer lines
                break
    assert struck_twice > 20


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


@pytest.mark.parametrize("difference", ["forward", "central"])
@pytest.mark.parametrize("masters", [True, False])
def test_what_base_passes_of_probes_write_stays(masters, difference):
    """Between two probes the parameters are at theta, with what the first one's forward wrote."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(16, 4, max_norm=0.5), nn.Linear(4, 1)).to(torch.bfloat16)
    optimizer = AdamW(model.parameters(), master_weights=True) if masters else None
    aligner = gradalign.GradAlign(model, 0.05, optimizer=optimizer, probe_fraction=0.5, difference=difference)
    with aligner.accumulate(8) as step:
        for i in range(8):
            step.backward(lambda i=i: model(torch.tensor([2 * i, 2 * i + 1])).float().square().mean())
    assert float(model[0].weight.detach().float().norm(dim=1).max()) < 0.51
    if optimizer is not None:
        assert torch.equal(optimizer.master(model[0].weight).bfloat16(), model[0].weight)


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
