"""The native optimizer steps against the reference steps."""

from __future__ import annotations

from types import ModuleType

import pytest
from support.step_cases import (  # noqa: F401
    test_16_bit_state_is_computed_in_float32_and_rounded_once,
    test_a_skipped_step_only_clears_gradients,
    test_a_step_is_that_of_the_reference_in_float64,
    test_a_step_that_is_not_skipped_is_a_step,
    test_lists_that_do_not_fit_are_refused_before_any_write,
    test_no_decay_leaves_an_infinite_parameter_alone,
    test_stochastic_rounding_draws_the_bits_of_the_reference,
    test_stochastic_rounding_is_right_on_average,
)

from gradalign.backends import native


@pytest.fixture
def backend() -> ModuleType:
    if native.why_unavailable() is not None:
        pytest.skip(f"native: {native.why_unavailable()}")
    return native
