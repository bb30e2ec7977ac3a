"""Estimators by name, and which options go with which."""

from __future__ import annotations

import pytest
from torch import nn

from gradalign import GradAlign


def test_options_that_mean_nothing_to_an_estimator_are_refused():
    model = nn.Linear(3, 1)
    with pytest.raises(ValueError, match="probes: expected 'last' with estimator \"prefix\""):
        GradAlign(model, 0.1, estimator="prefix", probes="rotate")
    with pytest.raises(ValueError, match="gradients: expected 'device' with estimator \"split\""):
        GradAlign(model, 0.1, gradients="host")
