"""Moving tensors between devices."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(x: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """`x` on `device`, in `dtype` if one is given, without waiting for it unless the host is to read it.

    On its way to the host a copy that nobody waits for is read before it has arrived.
    """
    return x.to(device, x.dtype if dtype is None else dtype, non_blocking=device.type != "cpu")


def sum_in_order(x: Tensor) -> Tensor:
    """The sum of a vector, always in the same order: its own on the CPU.

    Elsewhere `torch.sum`: CUDA's cumsum is refused under `torch.use_deterministic_algorithms`.
    """
    return x.cumsum(0)[-1] if x.device.type == "cpu" else x.sum()
