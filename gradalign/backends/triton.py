"""Triton kernels for CUDA and ROCm, from `gradalign.kernels`."""

from __future__ import annotations

import torch

NAME = "triton"


def why_unavailable() -> str | None:
    """Why the kernels cannot be used, with the remedy; None where they work."""
    return "not built yet"


def supports(device_type: str, dtypes: frozenset[torch.dtype]) -> bool:
    """Whether tensors of these dtypes on this kind of device can be worked on."""
    return False
