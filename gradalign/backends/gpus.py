"""Which GPU to try kernels on."""

from __future__ import annotations

import torch


def in_use() -> torch.device:
    """The first GPU that this process works on already, or the current one.

    A context on another one would take hundreds of MB there, once for each rank of a machine.
    """
    has_context = getattr(torch._C, "_cuda_hasPrimaryContext", lambda index: False)
    begun = [i for i in range(torch.cuda.device_count()) if has_context(i)]
    return torch.device("cuda", begun[0] if begun else torch.cuda.current_device())
