import itertools

import pytest
import torch
from support.toy_demo import StepCounter, toy_arm, toy_batches

from gradalign.cli.demo.backward import aligned_backward, plain_backward
from gradalign.cli.demo.reviews.train import (
    Arms,
    evaluation_steps,
    train_equal_steps,
    train_equal_time,
)


def data(k=4):
    for seed in itertools.count():
        yield toy_batches(k, seed=seed)


def test_with_weight_0_the_arms_are_the_same_run_bit_for_bit():
    plain, aligned = toy_arm(plain_backward), toy_arm(aligned_backward(0.0, 2))
    train_equal_steps(Arms(plain, aligned), 5, data(), toy_batches(3, seed=99), StepCounter())
    # Only the mean of the losses is rounded differently.
    assert plain.curve.losses == pytest.approx(aligned.curve.losses, rel=1e-6)
    assert plain.curve.accuracies == aligned.curve.accuracies
    for a, b in zip(plain.model.parameters(), aligned.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_an_arm_that_alternates_is_the_same_as_an_arm_alone():
    plain, aligned = toy_arm(plain_backward), toy_arm(aligned_backward(0.5, 2, objective="variance"))
    train_equal_steps(Arms(plain, aligned), 4, data(), toy_batches(1), StepCounter())
    alone = toy_arm(aligned_backward(0.5, 2, objective="variance"))
    for micro_batches in itertools.islice(data(), 4):
        torch.rand(7)  # other random numbers drawn in between
        alone.step(micro_batches)
    assert alone.curve.losses == aligned.curve.losses
    assert alone.curve.losses != plain.curve.losses


def test_training_learns_and_is_evaluated_after_each_quarter():
    plain, aligned = toy_arm(plain_backward), toy_arm(aligned_backward(0.001, 2))
    progress = StepCounter()
    train_equal_steps(Arms(plain, aligned), 40, data(), toy_batches(8, seed=99), progress)
    assert progress.done == 40
    for arm in (plain, aligned):
        assert [step for step, _ in arm.curve.accuracies] == [10, 20, 30, 40]
        assert arm.curve.accuracies[-1][1] > 0.9
        assert len(arm.curve.losses) == len(arm.curve.seconds) == 40


@pytest.mark.parametrize(("steps", "expected"), [(1, {1}), (3, {1, 2, 3}), (120, {30, 60, 90, 120})])
def test_evaluation_steps_end_with_the_last(steps, expected):
    assert evaluation_steps(steps) == expected


def test_adamw_trains_longer_alone_and_is_evaluated_again():
    plain, aligned = toy_arm(plain_backward), toy_arm(aligned_backward(0.001, 2))
    steps, progress, test = data(), StepCounter(), toy_batches(2, seed=99)
    train_equal_steps(Arms(plain, aligned), 4, steps, test, progress)
    plain.curve.seconds, aligned.curve.seconds = [1.0] * 4, [1.5] * 4
    train_equal_time(Arms(plain, aligned), steps, test, progress)
    assert (len(plain.curve.losses), len(aligned.curve.losses)) == (6, 4)
    assert plain.curve.accuracies[-1][0] == 6
    assert (progress.added, progress.done) == (2, 6)
