"""Arguments of an aligner or baseline that are assigned to afterwards."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from gradalign import GradAlign
from gradalign.baselines import Reptile


@pytest.mark.parametrize("name", ["weight", "objective", "radius", "estimator", "every", "params"])
def test_an_argument_is_no_attribute(name):
    aligner = copy.deepcopy(GradAlign(nn.Linear(2, 1), 0.1))
    with pytest.raises(AttributeError, match=f"{name}: expected as an argument of GradAlign; got an assignment"):
        setattr(aligner, name, 0.3)
    assert not hasattr(aligner, name)


def test_the_error_says_how_a_weight_changes():
    with pytest.raises(AttributeError, match="weight=lambda step"):
        GradAlign(nn.Linear(2, 1), 0.1).weight = 0.2
    with pytest.raises(AttributeError, match="inner_lr: expected as an argument of Reptile"):
        Reptile(nn.Linear(2, 1), 0.1).inner_lr = 0.2


def test_classes_of_the_user_have_attributes_of_their_own():
    class Aligner(GradAlign):
        def __init__(self, model, name):
            super().__init__(model, 0.1)
            self.name = name

    model = nn.Linear(2, 1)
    aligner = Aligner(model, "mine")
    aligner.backward(lambda x: model(x).square().mean(), list(torch.randn(2, 4, 2)))
    assert aligner.name == "mine"
