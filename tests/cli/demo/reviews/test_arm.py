import pytest
import torch
from support.toy_demo import toy_arm, toy_batches, toy_model

from gradalign.cli.demo import arm
from gradalign.cli.demo.arm import accuracy, aligned_backward, plain_backward, ramp


def test_arms_copy_the_model_they_start_from():
    model = toy_model()
    before = [p.clone() for p in model.parameters()]
    toy_arm(plain_backward, model=model).step(toy_batches(4))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize(("step", "warmup", "factor"), [(0, 4, 0.25), (3, 4, 1.0), (9, 4, 1.0), (0, 0, 1.0)])
def test_the_ramp_is_linear_and_stays_at_1(step, warmup, factor):
    assert ramp(step, warmup) == factor


def test_the_weight_of_the_term_follows_the_ramp(monkeypatch):
    seen = {}

    class Aligner:
        def __init__(self, model, weight):
            seen["weight"] = weight

        backward = None

    monkeypatch.setattr(arm.gradalign, "GradAlign", Aligner)
    aligned_backward(0.8, 4)(toy_model())
    assert [seen["weight"](step) for step in (0, 1, 3, 10)] == pytest.approx([0.2, 0.4, 0.8, 0.8])


def test_accuracy_is_measured_without_dropout_and_leaves_training_mode_on():
    model, batches = toy_model(), toy_batches(3)
    model.train()
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.tensor([0.0, 1.0]))  # always predicts 1
    expected = sum(int(b["labels"].sum()) for b in batches) / 12
    assert accuracy(model, batches) == pytest.approx(expected)
    assert model.training
