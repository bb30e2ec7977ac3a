"""Which losses are looked at in which step."""

from __future__ import annotations

import pytest

from gradalign.engine.inspection import Inspection
from gradalign.engine.transaction import Progress

K = 4


def looked_at(step, *, active=True, inspected=True, casts=False, suspicious=False):
    inspection = Inspection(Progress(num_aligned=step, casts_to_16_bit=casts, inspected=inspected), active, K)
    return [number for number in range(K + 2) if inspection.looks_at(number, suspicious)]


def test_all_losses_of_the_first_step_with_the_term():
    assert looked_at(5, inspected=False) == list(range(K + 2))


def test_another_loss_at_each_power_of_two():
    assert {step: looked_at(step) for step in range(1, 34) if looked_at(step)} == {
        1: [0],
        2: [1],
        4: [2],
        8: [3],
        16: [0],
        32: [1],
    }


def test_all_losses_after_one_that_looked_suspicious():
    assert looked_at(4, suspicious=True) == list(range(K + 2))
    assert looked_at(5, suspicious=True) == []


@pytest.mark.parametrize("inspected", [False, True])
def test_the_first_loss_without_the_term_until_casts_are_known(inspected):
    assert looked_at(3, active=False, inspected=inspected, casts=None) == [0]
    assert looked_at(4, active=False, inspected=inspected, suspicious=True) == []
