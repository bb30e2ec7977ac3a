"""Tensors of 2^31 elements and more, on a GPU: 32-bit indices would wrap."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch


def check_large_offsets(backend: ModuleType) -> None:
    """`perturb_` and `norm_dot` see the last element."""
    if torch.cuda.mem_get_info()[0] < 20 << 30:
        pytest.skip("needs 20 GB of device memory")
    n = (1 << 31) + 5000
    theta = torch.ones(n, dtype=torch.bfloat16, device="cuda")
    theta[-1] = 3
    backup = torch.zeros_like(theta)
    sums = backend.perturb_([theta], [backup], [backup], torch.zeros((), device="cuda"))
    assert torch.equal(backup, theta)
    assert sums.tolist() == [0, 0, 0]
    assert float(backend.norm_dot([theta])[0]) == n - 1 + 9
