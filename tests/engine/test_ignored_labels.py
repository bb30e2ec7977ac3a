"""A mean over no label is named; another NaN, and a batch that has labels, are not."""

from __future__ import annotations

import pytest
import torch

import gradalign
from gradalign.engine.ignored_labels import no_mean_over_nothing

NONE, SOME = torch.full((2, 3), -100), torch.tensor([[-100, 4]])


@pytest.mark.parametrize("batch", [{"labels": NONE}, (torch.ones(2), NONE), [torch.ones(2), NONE]])
def test_a_mean_over_no_label_is_named(batch):
    with pytest.raises(ValueError, match=r"got one of shape \(2, 3\) whose labels are all -100"):
        no_mean_over_nothing(float("nan"), batch)


@pytest.mark.parametrize(
    ("loss", "batch"),
    [
        (0.0, {"labels": NONE}),
        (float("nan"), {"labels": SOME}),
        (float("nan"), {"x": NONE}),
        (float("nan"), {"labels": NONE.float()}),
        (float("nan"), torch.ones(3)),
        (float("nan"), ()),
    ],
)
def test_everything_else_is_not(loss, batch):
    no_mean_over_nothing(loss, batch)


def test_the_first_step_names_it():
    model = torch.nn.Linear(3, 5)

    def loss_fn(batch):
        return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])

    good = (torch.randn(4, 3), torch.randint(5, (4,)))
    batches = [(torch.randn(4, 3), torch.full((4,), -100)), good, good, good]
    with pytest.raises(ValueError, match="whose labels are all -100"):
        gradalign.GradAlign(model, weight=0.1).backward(loss_fn, batches)
