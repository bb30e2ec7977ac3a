"""Sums of gradients and of unit gradients, and the agreement that they show; stored gradients carry the plain loop's 1/k."""

from __future__ import annotations

import pytest
import torch
from support.begun_step import Bowl, begun_step

from gradalign.engine.sums import Sums

GRADIENTS = [[3.0, 4.0], [0.0, 5.0]]  # as stored: half of g_i


def summed(num=2, **options):
    step = begun_step(Bowl([0.0, 0.0]), num, **options)
    sums = Sums(step, step.space.zeros())
    for g in GRADIENTS:
        sums.add([torch.tensor(g, dtype=torch.float64)])
    return step, sums


def test_the_sum_of_gradients_is_the_reference():
    step, sums = summed()
    assert sums.total[0].tolist() == [3.0, 9.0]
    assert sums.reference is sums.total
    assert sums.units is None
    assert float(step.agreement.known()["dot"]) == 4 * 20  # g_1 . g_2, of twice the stored vectors


def test_with_telemetry_unit_gradients_are_added_up_too():
    step, sums = summed(telemetry=True)
    assert sums.units[0].tolist() == pytest.approx([0.6, 1.8], rel=1e-15)
    assert sums.reference is sums.total
    known = step.agreement.known()
    assert float(known["cosine"]) == pytest.approx(0.8, rel=1e-15)
    assert float(known["noise_numerator"]) == 4 * (25 - 20)  # mean ||g_i||^2 - mean g_i . g_j


def test_cosine_compares_with_unit_gradients():
    _, sums = summed(objective="cosine")
    assert sums.reference is sums.units


def test_a_gradient_can_go_into_a_sum_of_its_own():
    step = begun_step(Bowl([0.0, 0.0]))
    sums, other = Sums(step, step.space.zeros()), step.space.zeros()
    for g in GRADIENTS:
        sums.add([torch.tensor(g, dtype=torch.float64)], other, num_before=0)
    assert other[0].tolist() == [3.0, 9.0]
    assert sums.total == [None]
    assert "dot" not in step.agreement.known()  # neither was compared with one before
