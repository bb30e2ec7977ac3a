from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _deterministic():
    """Every test starts from the same random numbers, whatever ran before it."""
    torch.manual_seed(0)
