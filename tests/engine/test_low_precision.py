"""The warning that the parameters' dtype cannot represent the displacement."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import gradalign
from gradalign.engine import low_precision
from gradalign.engine.low_precision import DisplacementInfo, DisplacementWatch

NARROW = frozenset({torch.bfloat16})


def coarse(dtype=torch.bfloat16, seed=0):
    """A network in the given dtype that loses a displacement of 1e-5, with its micro-batches."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(30, 40), nn.Tanh(), nn.Linear(40, 5)).to(dtype)
    batches = list(torch.randn(4, 16, 30).to(dtype))

    def loss_fn(x):
        return model(x).float().tanh().square().mean()

    return model, loss_fn, batches


def steps(aligner, model, loss_fn, batches, num=1, how="backward"):
    """Steps that are called from this file, which a warning then names."""
    for _ in range(num):
        if how == "backward":
            aligner.backward(loss_fn, batches)
        else:
            with aligner.accumulate(len(batches)) as step:
                for batch in batches:
                    step.backward(lambda batch=batch: loss_fn(batch))
        model.zero_grad()


@pytest.mark.parametrize("how", ["backward", "accumulate"])
@pytest.mark.parametrize(
    ("dtype", "name"), [(torch.bfloat16, "bfloat16"), (torch.float16, "float16"), (torch.float32, "float32")]
)
def test_a_displacement_that_the_dtype_rounds_away_is_warned_of_once_at_the_call(dtype, name, how):
    model, loss_fn, batches = coarse(dtype)
    aligner = gradalign.GradAlign(model, 0.01, radius=1e-9 if dtype == torch.float32 else 1e-6)
    with pytest.warns(UserWarning, match=f"got {name}, which rounds it to another direction") as caught:
        steps(aligner, model, loss_fn, batches, 3, how)
    (warning,) = caught
    assert warning.filename == __file__
    assert "use a larger radius" in str(warning.message)
    assert ("fp32 masters" in str(warning.message)) is (dtype != torch.float32)
    assert float(aligner.stats.displacement_cosine) < 0.5


@pytest.mark.parametrize(("dtype", "radius"), [(torch.bfloat16, 0.1), (torch.float16, 0.01), (torch.float32, 1e-4)])
def test_a_displacement_that_the_dtype_represents_is_not_warned_of(dtype, radius):
    model, loss_fn, batches = coarse(dtype)
    aligner = gradalign.GradAlign(model, 0.01, radius=radius)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps(aligner, model, loss_fn, batches, 2)
    assert float(aligner.stats.displacement_cosine) > 0.7


def test_a_warning_that_is_made_an_error_leaves_the_step_undone():
    model, loss_fn, batches = coarse()
    aligner = gradalign.GradAlign(model, 0.01, radius=1e-6)
    before = [p.detach().clone() for p in model.parameters()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="larger radius"):
            aligner.backward(loss_fn, batches)
        assert (aligner.num_steps, aligner.stats) == (0, None)
        assert all(p.grad is None and torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
        aligner.backward(loss_fn, batches)
    assert aligner.num_steps == 1


class Sent:
    """A transfer that completes when the test says so."""

    made: list = []  # noqa: RUF012

    def __init__(self, number):
        self.arrived = None
        Sent.made.append(self)

    def value(self):
        return self.arrived


def test_on_a_device_the_cosine_is_judged_in_the_first_step_after_its_transfer(monkeypatch):
    monkeypatch.setattr(low_precision, "AsyncScalar", Sent)
    monkeypatch.setattr(Sent, "made", [])
    watch, cosine = DisplacementWatch(), torch.ones((), device="meta")  # reading a meta tensor would raise

    def note(radius):
        watch.note(cosine, DisplacementInfo(radius, NARROW, False), stacklevel=1)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        note(0.1)
        note(0.2)  # the first has not arrived: no other is sent
        assert len(Sent.made) == 1
        Sent.made[0].arrived = 0.9
        note(0.3)
        assert len(Sent.made) == 2
        Sent.made[1].arrived = 0.25
    with pytest.warns(UserWarning, match="length 0.3; got bfloat16.*cosine 0.25, below 0.5"):
        note(0.4)
    note(0.5)
    assert len(Sent.made) == 2


@pytest.mark.gpu
def test_watching_does_not_synchronise_a_device():
    model, loss_fn, batches = coarse()
    model, batches = model.cuda(), [b.cuda() for b in batches]
    aligner = gradalign.GradAlign(model, 0.01, radius=1e-6)
    steps(aligner, model, loss_fn, batches, 1)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.warns(UserWarning, match="got bfloat16"):
            steps(aligner, model, loss_fn, batches, 2)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_masters_are_not_recommended_to_those_who_have_them():
    text = low_precision.message(0.2, DisplacementInfo(0.01, frozenset({torch.bfloat16, torch.float32}), True))
    assert "got bfloat16 and float32" in text
    assert "use a larger radius; " in text
