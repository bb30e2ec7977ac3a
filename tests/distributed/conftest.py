from __future__ import annotations

import pytest
from support.ranks import Group


@pytest.fixture(scope="session")
def two_ranks():
    """Two processes, as long as the worker of pytest lives."""
    processes = Group(2)
    yield processes
    processes.stop()


@pytest.fixture(scope="session")
def four_ranks():
    """Four processes, as long as the worker of pytest lives."""
    processes = Group(4)
    yield processes
    processes.stop()
