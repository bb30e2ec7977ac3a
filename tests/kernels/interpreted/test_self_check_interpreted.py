"""The comparison that is made before the first use on a GPU finds nothing wrong."""

from __future__ import annotations

import pytest
import torch

from gradalign.backends import self_check, triton


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_kernels_pass(dtype):
    assert self_check.why_wrong(triton, torch.device("cpu"), dtype) is None
