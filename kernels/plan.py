"""How the tensors of some lists are cut into chunks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from gradalign.kernels.sweep import CHUNK
from gradalign.kernels.tables import Recent, Table, integers
from gradalign.kernels.tensor_lists import STRIDED, Entry, Format, Layout

_plans: Recent[Plan] = Recent(64)


class Group(NamedTuple):
    """The chunks of the tensors of one combination of dtypes: one launch."""

    dtypes: tuple[torch.dtype, ...]
    tensors: list[int] | None  # None: all
    first: int
    num_chunks: int


class Plan:
    """The chunks of all tensors, by group; depends on dtypes, layouts and sizes, not on addresses.

    Attributes:
        groups: the launches.
        num_chunks: over all groups.
        irregular: the tensors that are no linear stretch of memory, the same in every list; they are copied.
        chunks: per chunk, tensor << 32 | chunk within it.
        numels: per tensor.
        ranges: [2, tensors], the tensor's first chunk and the end of its chunks.
    """

    def __init__(
        self,
        formats: Sequence[Format],
        row_major: bool,
        device: torch.device,
    ) -> None:
        sizes = formats[0].sizes
        members: dict[tuple[torch.dtype, ...], list[int]] = {}
        self.irregular: list[int] = []
        dtypes_of, layouts_of = (
            zip(*[f.dtypes for f in formats], strict=True),
            zip(*[f.layouts for f in formats], strict=True),
        )
        for i, (dtypes, layouts) in enumerate(zip(dtypes_of, layouts_of, strict=True)):
            if _linear(set(layouts), row_major):
                members.setdefault(dtypes, []).append(i)
            else:
                self.irregular.append(i)

        self.groups: list[Group] = []
        self.num_chunks = 0
        pieces = []
        ranges = torch.zeros(2, len(sizes), dtype=torch.int64, device="cpu")
        for dtypes, tensors in members.items():
            index = integers(tensors)
            counts = -(-integers([sizes[i] for i in tensors]) // CHUNK)
            ends = self.num_chunks + counts.cumsum(0)
            ranges[:, index] = torch.stack([ends - counts, ends])
            total = int(counts.sum())
            if total:
                everything = len(tensors) == len(sizes)
                self.groups.append(Group(dtypes, None if everything else tensors, self.num_chunks, total))
                numbers = torch.arange(self.num_chunks, self.num_chunks + total, device="cpu")
                pieces.append(
                    (index.repeat_interleave(counts) << 32) | (numbers - (ends - counts).repeat_interleave(counts))
                )
                self.num_chunks += total
        self.chunks = Table(torch.cat(pieces) if pieces else integers([0]), device)
        self.numels = Table(integers(sizes), device)
        self.ranges = Table(ranges, device)


def plan_of(entries: Sequence[Entry], device: torch.device, row_major: bool) -> Plan:
    """The plan of some lists.

    Args:
        entries: of the lists, whose tensors agree in shape.
        device: where the tensors are.
        row_major: whether the order of the elements matters, so that a permuted layout is irregular.
    """
    formats = [entry.format for entry in entries]
    return _plans.get((device, row_major, *formats), lambda: Plan(formats, row_major, device))


def _linear(layouts: set[Layout], row_major: bool) -> bool:
    return layouts == {None} or (len(layouts) == 1 and not row_major and STRIDED not in layouts)
