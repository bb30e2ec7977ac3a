"""Tensors in chunks, so that the temporaries of the reference backend stay small."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

CPU_CHUNK = 1 << 17  # elements: the few temporaries of a chunk stay in the L2 cache
DEVICE_CHUNK = 1 << 21  # elements: 16 MB of float64


def compute_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """The wider of float32 and the storage dtypes."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def chunks(*tensors: Tensor, temporaries: int = 1) -> Iterator[tuple[Tensor, ...]]:
    """The same elements of every tensor, piece by piece, in row-major order; the pieces are views.

    Args:
        tensors: tensors of one shape.
        temporaries: how many copies of a piece the caller holds at once on a device other than the CPU.
    """
    first = tensors[0]
    limit = CPU_CHUNK if first.device.type == "cpu" else DEVICE_CHUNK // temporaries
    if first.numel() <= limit:
        if first.numel():
            yield tensors
    elif all(t.is_contiguous() for t in tensors):
        yield from zip(*(t.view(-1).split(limit) for t in tensors), strict=True)
    else:
        rows = max(1, limit // (first.numel() // first.shape[0]))
        for pieces in zip(*(t.split(rows) for t in tensors), strict=True):
            inner = tuple(t[0] for t in pieces) if len(pieces[0]) == 1 else pieces
            yield from chunks(*inner, temporaries=temporaries)
