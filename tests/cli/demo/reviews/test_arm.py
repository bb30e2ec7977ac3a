import math

import pytest
import torch
from support.toy_demo import toy_arm, toy_batches, toy_model

from gradalign.cli.demo.backward import plain_backward
from gradalign.cli.demo.reviews.arm import accuracy


def test_arms_copy_the_model_they_start_from():
    model = toy_model()
    before = [p.clone() for p in model.parameters()]
    toy_arm(plain_backward, model=model).step(toy_batches(4))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_accuracy_is_measured_without_dropout_and_leaves_training_mode_on():
    model, batches = toy_model(), toy_batches(3)
    model.train()
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.tensor([0.0, 1.0]))  # always predicts 1
    expected = sum(int(b["labels"].sum()) for b in batches) / 12
    assert accuracy(model, batches) == pytest.approx(expected)
    assert model.training


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_logits_that_are_not_finite_have_no_accuracy(broken):
    model = toy_model()
    with torch.no_grad():
        model.head.bias[0] = broken
    assert math.isnan(accuracy(model, toy_batches(3)))
    assert model.training
