"""The examples in docstrings run."""

from __future__ import annotations

import doctest
import importlib

import pytest


@pytest.mark.parametrize(
    "name",
    [
        "gradalign",
        "gradalign.aligner",
        "gradalign.baselines.reptile",
        "gradalign.baselines.sam",
        "gradalign.batches",
        "gradalign.ops",
    ],
)
def test_examples(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0
