"""Moving tensors between devices."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(x: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """`x` on `device`, in `dtype` if one is given, without waiting for it unless the host is to read it.

    On its way to the host a copy that nobody waits for is read before it has arrived.
    """
    return x.to(device, x.dtype if dtype is None else dtype, non_blocking=device.type != "cpu")
