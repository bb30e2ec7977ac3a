"""What an objective says of its displacement; `tests/backends/test_scalar_ops.py` has the numbers."""

from __future__ import annotations

import pytest

from gradalign.objectives import OBJECTIVES, objective


@pytest.mark.parametrize("name", OBJECTIVES)
def test_whose_gradients_are_in_the_displacement(name):
    found = objective(name)
    assert found.own == (name in ("variance", "cosine"))
    assert found.unit == (name == "cosine")


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="objective: expected one of 'cosine', 'dot', 'norm', 'variance'; got 'angle'"):
        objective("angle")
