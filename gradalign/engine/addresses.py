"""Where the trainable parameters are in memory: no two may overlap, and a buffer that overlaps one is part of it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor


def span(t: Tensor) -> tuple[int, int]:
    """Addresses of its first byte and of the one after its last."""
    first = t.data_ptr()
    if t.is_contiguous():
        return first, first + t.nbytes
    last = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    return first, first + (last + 1) * t.element_size()


def repeats(t: Tensor) -> bool:
    """Whether an element may be in two places of one tensor (expanded, or windows of one buffer)."""
    reach = 0
    for stride, size in sorted(zip(t.stride(), t.shape, strict=True)):
        if size > 1:
            if stride <= reach:
                return True
            reach += (size - 1) * stride
    return False


class ParamMemory:
    """The addresses of some parameters, as they are now.

    Attributes:
        shared: the positions of two parameters that have an element in common; None where there are none.
    """

    def __init__(self, params: Sequence[Tensor]) -> None:
        self._addresses = list(map(Tensor.data_ptr, params))
        self.shared: tuple[int, int] | None = None
        places = [(p.device, *span(p), i) for i, p in enumerate(params) if p.numel() and self._addresses[i]]
        self._spans: dict[torch.device, tuple[list[int], list[int]]] = {}
        for device in {place[0] for place in places}:
            here = sorted(place[1:] for place in places if place[0] == device)
            reaching: list[tuple[int, int]] = []  # of those that began before: end, number
            for start, end, j in here:
                reaching = [(past, i) for past, i in reaching if past > start]
                for _, i in reaching:
                    if _overlap(params[i], params[j]):
                        self.shared = (i, j)
                reaching.append((end, j))
            self._spans[device] = ([start for start, _, _ in here], list(accumulate((end for _, end, _ in here), max)))

    def is_of(self, params: Sequence[Tensor]) -> bool:
        """Whether these parameters are at the recorded addresses."""
        return self._addresses == list(map(Tensor.data_ptr, params))

    def covers(self, t: Tensor) -> bool:
        """Whether a tensor overlaps the memory of a parameter."""
        spans = self._spans.get(t.device)
        if spans is None or t.layout is not torch.strided or not t.numel():
            return False
        starts, reach = spans
        first, end = span(t)
        before = bisect_left(starts, end)
        return before > 0 and reach[before - 1] > first


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors whose spans overlap have an element in common (columns of one matrix have none)."""
    first, size = min(a.data_ptr(), b.data_ptr()), a.element_size()
    offsets = [divmod(t.data_ptr() - first, size) for t in (a, b)]
    if b.element_size() != size or any(rest for _, rest in offsets):
        return True
    marks = torch.zeros((max(span(a)[1], span(b)[1]) - first) // size, dtype=torch.bool, device="cpu")
    views = [marks.as_strided(t.shape, t.stride(), offset) for t, (offset, _) in zip((a, b), offsets, strict=True)]
    views[0].fill_(True)
    return bool(views[1].any())
