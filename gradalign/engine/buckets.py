"""Tensors that are sent to other processes together, through flat buffers of bounded size."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

BYTES = 25 * 2**20  # of a buffer, as DistributedDataParallel's
IN_FLIGHT = 2  # buffers: one is filled while another is sent


class _Sent(NamedTuple):
    tensors: Sequence[Tensor]
    flat: Tensor  # the only one itself, or all of them in a row
    work: Any


@torch.no_grad()
def reduce_together(tensors: Iterable[Tensor], start: Callable[[Tensor], Any], factor: float) -> None:
    """Every tensor is reduced in place and multiplied with a factor.

    Args:
        tensors: any; those of one device and dtype travel together.
        start: starts the reduction of a contiguous tensor in place; what it returns has a `wait`.
        factor: for all of them.
    """
    sent: deque[_Sent] = deque()
    for bucket in buckets(tensors):
        if len(sent) == IN_FLIGHT:
            _finish(sent.popleft(), factor)
        alone = len(bucket) == 1 and bucket[0].is_contiguous()
        flat = bucket[0] if alone else torch.cat([t.reshape(-1) for t in bucket])
        sent.append(_Sent(bucket, flat, start(flat)))
    while sent:
        _finish(sent.popleft(), factor)


def buckets(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Neighbours of one device and dtype, up to `BYTES` together; a larger tensor is alone."""
    found: list[list[Tensor]] = []
    for _, alike in groupby(tensors, key=lambda t: (t.device, t.dtype)):
        room = -1
        for t in alike:
            if t.nbytes > room:
                found.append([])
                room = BYTES
            found[-1].append(t)
            room -= t.nbytes
    return found


def _finish(sent: _Sent, factor: float) -> None:
    sent.work.wait()
    sent.flat.mul_(factor)
    if sent.flat is not sent.tensors[0]:
        parts = sent.flat.split([t.numel() for t in sent.tensors])
        torch._foreach_copy_(
            list(sent.tensors), [part.view(t.shape) for part, t in zip(parts, sent.tensors, strict=True)]
        )
