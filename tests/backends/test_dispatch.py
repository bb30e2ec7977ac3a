"""Which backend runs the ops."""

from __future__ import annotations

import pytest
from torch import nn

from gradalign import GradAlign


def test_a_missing_backend_is_an_error_that_lists_what_is_there():
    with pytest.raises(RuntimeError, match=r'backend "triton": .*available here: .*reference'):
        GradAlign(nn.Linear(2, 1), 0.1, backend="triton")
