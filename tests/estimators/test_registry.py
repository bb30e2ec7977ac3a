"""Estimators by name, and which options go with which."""

from __future__ import annotations

import dataclasses
from typing import get_args

import pytest
import torch
from support.networks import Counting, make
from torch import nn

import gradalign
from gradalign import GradAlign
from gradalign.estimators import ESTIMATORS, Estimator, EstimatorName, LeaveOneOut, Momentum, Split, named


def test_every_name_is_an_estimator_with_its_default_options():
    assert list(ESTIMATORS) == list(get_args(EstimatorName))
    for name in ESTIMATORS:
        assert named(name) == ESTIMATORS[name]()
        assert named(name).name == name
    mine = Split(probes="rotate")
    assert named(mine) is mine
    with pytest.raises(ValueError, match="estimator: expected one of 'exact', .*; got 'all'"):
        named("all")
    with pytest.raises(TypeError, match=r"got the class LeaveOneOut; write an instance, LeaveOneOut\(\)"):
        named(LeaveOneOut)


def test_options_are_frozen_and_belong_to_their_estimator():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Split().probes = "rotate"
    with pytest.raises(TypeError, match="unexpected keyword argument 'probes'"):
        LeaveOneOut(probes="rotate")
    assert (Split(), Split(0.25, "last")) == (Split(probe_fraction=0.25), Split(probes="last"))


@pytest.mark.parametrize(
    ("make_estimator", "message"),
    [
        (lambda: Split(probes="first"), "probes: expected one of 'last', 'rotate'; got 'first'"),
        (lambda: Split(probe_fraction=0.0), "probe_fraction: expected a number above 0 and at most 1; got 0.0"),
        (lambda: LeaveOneOut(gradients="disk"), "gradients: expected one of 'device', 'host', 'recompute'; got 'disk'"),
        (lambda: Momentum(decay=1.0), "decay: expected a number of at least 0 and below 1; got 1.0"),
    ],
)
def test_options_out_of_range_are_refused(make_estimator, message):
    with pytest.raises(ValueError, match=message):
        make_estimator()


def test_the_shorthand_is_that_of_split_and_of_nothing_else():
    model = nn.Linear(3, 1)
    batches = list(torch.randn(8, 5, 3))

    def passes(**options):
        aligner = GradAlign(model, 0.1, **options)
        aligner.backward(lambda x: model(x).square().mean(), batches)
        model.zero_grad()
        return aligner.stats.passes

    assert passes(probe_fraction=0.5) == passes(estimator=Split(probe_fraction=0.5)) == 12
    with pytest.raises(ValueError, match=r"probe_fraction: .*write Split\(probe_fraction=0.5\)"):
        GradAlign(model, 0.1, estimator=Split(probes="rotate"), probe_fraction=0.5)
    for option in ("probes", "gradients"):
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{option}'"):
            GradAlign(model, 0.1, **{option: "rotate"})


def test_an_estimator_of_ones_own_is_one_class():
    @dataclasses.dataclass(frozen=True)
    class FirstHalf(Estimator):
        """The last micro-batches against the first one alone."""

        name = "first_half"
        normalizations = ("direction",)
        share: float = 0.5

        def make(self, step, total):
            return Split(self.share).make(step, total)

    model = nn.Linear(3, 1)
    aligner = GradAlign(model, 0.1, estimator=FirstHalf())
    aligner.backward(lambda x: model(x).square().mean(), list(torch.randn(4, 5, 3)))
    assert aligner.stats.passes == 6
    with pytest.raises(ValueError, match='estimator "first_half": expected normalize in'):
        GradAlign(model, 0.1, estimator=FirstHalf(), normalize="none")


def test_one_estimator_serves_several_aligners():
    estimator, means = Momentum(decay=0.5), []
    for scale in (1.0, 2.0):
        model = nn.Linear(2, 1, bias=False)
        aligner = GradAlign(model, 0.0 if scale < 0 else 0.1, estimator=estimator)
        aligner.backward(lambda x, scale=scale, model=model: scale * model(x).mean(), [torch.ones(1, 2)] * 2)
        means.append(aligner.state_dict()["mean"][0])
    assert torch.equal(means[0], torch.full((1, 2), 0.5))
    assert torch.equal(means[1], torch.full((1, 2), 1.0))


@pytest.mark.parametrize(
    "options",
    [{"estimator": "leave_one_out"}, {"estimator": "symmetric"}, {"estimator": Split(probes="rotate")}],
    ids=str,
)
def test_accumulate_refuses_what_needs_all_micro_batches(options):
    model, _, _ = make(Counting)
    with pytest.raises(ValueError, match="accumulate: expected an estimator that sees every micro-batch once"):
        gradalign.GradAlign(model, 0.1, **options).accumulate(4).__enter__()
    for schedule in ({"weight": lambda step: 0.1 * step}, {"weight": 0.1, "every": 2}):  # in steps without the term too
        aligner = gradalign.GradAlign(model, **schedule, **options)
        aligner.load_state_dict({"num_steps": 0 if "every" not in schedule else 1})
        with pytest.raises(ValueError, match="accumulate: expected an estimator that sees every micro-batch once"):
            aligner.accumulate(4).__enter__()
    gradalign.GradAlign(model, 0.0, **options).accumulate(4).__enter__()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"estimator": "symmetric", "objective": "variance"},
            'estimator "symmetric": expected objective "dot" or "norm"',
        ),
        ({"estimator": "momentum", "objective": "cosine"}, 'estimator "momentum": expected objective "dot" or "norm"'),
        ({"estimator": "momentum", "normalize": "none"}, 'estimator "momentum": expected normalize in'),
    ],
)
def test_combinations_that_an_estimator_cannot_do_are_refused(options, message):
    model, _, _ = make(Counting)
    with pytest.raises(ValueError, match=message):
        gradalign.GradAlign(model, 0.1, **options)


# The passes of four micro-batches in the order in which they run; a displaced one is marked.
ORDERS = {
    "split": "0 1 2 3* 3",
    "prefix": "0 1 1* 2 2* 3 3*",
    "leave_one_out": "0 1 2 3 0* 1* 2* 3*",
    "symmetric": "0 1 2 3 0* 1* 2* 3*",
    "momentum": "0 1 2 3",
    "exact": "0 1 2 3",
}


def order_of_passes(**options):
    model = nn.Linear(3, 1)
    aligner, seen = GradAlign(model, 0.1, check_replay=False, **options), []

    def loss_fn(batch):
        number, x = batch
        seen.append(f"{number}*" if aligner.displaced else f"{number}")
        return model(x).square().mean()

    aligner.backward(loss_fn, list(enumerate(torch.randn(4, 5, 3))))
    return " ".join(seen)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_order_of_passes(name):
    assert order_of_passes(estimator=name) == ORDERS[name]


def test_the_order_of_passes_of_other_objectives_and_differences():
    assert order_of_passes(objective="variance") == "0 1 2 3 3*"  # the displacement contains the probe's own gradient
    assert order_of_passes(probe_fraction=0.5, difference="central") == "0 1 2* 3* 2* 3* 2 3"
    assert order_of_passes(estimator="prefix", difference="central") == "0 1 1* 1* 2 2* 2* 3 3* 3*"
