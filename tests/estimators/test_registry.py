"""Estimators by name, and which options go with which."""

from __future__ import annotations

import pytest
import torch
from support.networks import Counting, make
from torch import nn

import gradalign
from gradalign import GradAlign
from gradalign.estimators import ESTIMATORS


def test_an_option_of_another_estimator_is_refused():
    model = nn.Linear(3, 1)
    with pytest.raises(ValueError, match="probes: expected 'last' with estimator \"prefix\""):
        GradAlign(model, 0.1, estimator="prefix", probes="rotate")
    with pytest.raises(ValueError, match="gradients: expected 'device' with estimator \"split\""):
        GradAlign(model, 0.1, gradients="host")


@pytest.mark.parametrize("options", [{"estimator": "leave_one_out"}, {"estimator": "symmetric"}, {"probes": "rotate"}])
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
        ({"probes": "first"}, "probes: expected one of 'last', 'rotate'"),
        ({"gradients": "disk"}, "gradients: expected one of 'device', 'host', 'recompute'"),
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
    aligner, seen = GradAlign(model, 0.1, **options), []

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
