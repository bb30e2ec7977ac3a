"""Which steps tell that no loss moves with the parameters, and that nothing is kept after the first that tells."""

from __future__ import annotations

import warnings

import pytest
import torch

from gradalign.integrations.detached_losses import STEPS, DetachedLosses
from gradalign.telemetry import AlignmentStats

WARNING = "got the same to the last bit"


def stats(cosine=1.0, grad_norm=1.0, radius=0.01):
    numbers = {"grad_norm": torch.tensor(grad_norm), "displacement_cosine": torch.tensor(cosine)}
    return AlignmentStats(loss=torch.zeros(()), passes=5, radius=radius, **numbers)


def step(watch, base, beside, dtype=torch.float32, told=False, **known):
    """One step; returns how many warnings it gave."""
    for one, others in zip(base, beside, strict=True):
        losses = watch.begin()
        for other in others:
            losses.note(torch.tensor(other, dtype=dtype), displaced=True)
        losses.note(torch.tensor(one, dtype=dtype), displaced=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        watch.judge(stats(**known), told)
    return sum(WARNING in str(w.message) for w in caught)


SAME = ([0.25, 0.0, -0.5], [[], [0.0], [-0.5, -0.5]])


def test_losses_that_stay_the_same_are_warned_of_once():
    watch = DetachedLosses()
    assert step(watch, *SAME) == 1
    assert step(watch, *SAME) == 0
    assert not watch._noted


def test_what_the_aligner_has_told_is_not_said_again():
    watch = DetachedLosses()
    assert step(watch, *SAME, told=True) == 0
    assert step(watch, *SAME) == 0


def test_a_loss_that_moved_ends_the_watch():
    watch = DetachedLosses()
    assert step(watch, [0.25, -0.5], [[], [-0.5000001]]) == 0
    assert step(watch, *SAME) == 0


@pytest.mark.parametrize(
    "first",
    [
        {"base": [0.25, 0.0], "beside": [[], [0.0]]},
        {"base": [0.25, 0.5], "beside": [[], []]},
        {"base": SAME[0], "beside": SAME[1], "cosine": 0.1},
        {"base": SAME[0], "beside": SAME[1], "grad_norm": 1e-5},
        {"base": SAME[0], "beside": SAME[1], "radius": None},
        {"base": SAME[0], "beside": SAME[1], "dtype": torch.bfloat16},
    ],
    ids=["no advantage", "no displaced pass", "not displaced", "no gradient", "no term", "16 bits"],
)
def test_a_step_that_does_not_tell_leaves_it_to_the_next(first):
    watch = DetachedLosses()
    assert step(watch, **first) == 0
    assert step(watch, *SAME) == 1


def test_only_the_first_steps_are_read():
    watch = DetachedLosses()
    for _ in range(STEPS):
        assert step(watch, [0.0], [[0.0]]) == 0
    assert step(watch, *SAME) == 0
    assert not watch._noted
