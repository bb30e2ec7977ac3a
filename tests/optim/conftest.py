from __future__ import annotations

import pytest

from gradalign.backends import dispatch


@pytest.fixture(params=dispatch.ORDER)
def backend(request):
    """Every backend that works on this machine's CPU."""
    reason = dispatch.load(request.param).why_unavailable()
    if reason is not None:
        pytest.skip(f"{request.param}: {reason}")
    try:
        dispatch.backend(request.param, "cpu", frozenset())
    except RuntimeError as error:
        pytest.skip(str(error))
    return request.param
