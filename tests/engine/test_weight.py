"""The weight of the term by the step."""

from __future__ import annotations

import pytest

from gradalign.engine.weight import Weight


def weights(weight, num):
    return [weight.at(step) for step in range(num)]


def test_a_number_is_the_weight_of_every_step():
    assert weights(Weight(0.5), 3) == [0.5, 0.5, 0.5]


def test_a_function_is_called_with_the_step():
    assert weights(Weight(lambda step: 0.5 * step), 3) == [0.0, 0.5, 1.0]


def test_with_every_n_the_weight_is_n_times_as_large_in_every_nth_step():
    assert weights(Weight(0.5, every=3), 5) == [1.5, 0.0, 0.0, 1.5, 0.0]
    assert weights(Weight(lambda step: step + 1.0, every=2), 4) == [2.0, 0.0, 6.0, 0.0]


def test_only_the_number_0_rules_out_every_step_with_the_term():
    assert not Weight(0.0).may_act
    assert Weight(-1.0).may_act
    assert Weight(lambda step: 0.0).may_act


def test_an_invalid_weight_is_refused():
    with pytest.raises(ValueError, match="weight: expected a finite number; got inf"):
        Weight(float("inf"))
    with pytest.raises(ValueError, match=r"weight\(step\): expected a finite number; got nan"):
        Weight(lambda step: float("nan")).at(0)
    with pytest.raises(ValueError, match="every: expected an integer of at least 1; got 0"):
        Weight(1.0, every=0)
