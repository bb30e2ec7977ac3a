"""An op: tables, the sweep over every group of tensors, the second stage of the reductions, copies where a layout needs one."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from gradalign.backends.signatures import Tensors
from gradalign.engine import devices
from gradalign.kernels.launch import launch
from gradalign.kernels.plan import Plan, plan_of
from gradalign.kernels.sums import sum_all, sum_each
from gradalign.kernels.sweep import BLOCK, CHUNK, TAIL, sweep
from gradalign.kernels.tables import current_stream
from gradalign.kernels.tensor_lists import entry_of

TRITON_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


class Sweep(NamedTuple):
    """A block and what it is given.

    Attributes:
        block: see `gradalign.kernels.sweep`.
        written: the lists that it writes, in the order in which contiguous copies of theirs are put back.
        scalars: 0-dim tensors.
        per_tensor: vectors with one entry per tensor.
        floats: numbers.
        options: constants, compiled in.
        num_sums: how many sums it keeps.
        num_results: how many `run` returns, those beyond `num_sums` being 0.
        row_major: whether the order of the elements matters to it.
    """

    block: Any
    written: tuple[int, ...] = ()
    scalars: tuple[Tensor, ...] = ()
    per_tensor: tuple[Tensor, ...] = ()
    floats: tuple[float, ...] = ()
    options: tuple[bool, ...] = ()
    num_sums: int = 0
    num_results: int = 0
    row_major: bool = False

    def for_tensor(self, i: int) -> Sweep:
        """The same for tensor i alone."""
        return self._replace(per_tensor=tuple(v[i : i + 1] for v in self.per_tensor))


def run(work: Sweep, lists: Sequence[Tensors]) -> Tensor:
    """Sweep over all elements of some lists of tensors that agree in shape; float64 [num_results]."""
    with make_current(lists[0][0].device):
        plan, partials = _sweep(work, lists)
        total = sum_all(partials, plan.num_chunks, work.num_sums, work.num_results) if work.num_results else partials
        for i in plan.irregular:
            row = _ContiguousCopies(lists, i)
            part = run(work.for_tensor(i), row.lists)
            total = total + part if work.num_results else total
            row.copy_back(work.written)
        return total


def run_each(work: Sweep, lists: Sequence[Tensors]) -> Tensor:
    """The same with the sums of the tensors kept apart; float64 [num_sums, tensors]."""
    with make_current(lists[0][0].device):
        plan, partials = _sweep(work, lists)
        stream = current_stream(lists[0][0].device)
        totals = sum_each(partials, plan.ranges.on(stream), plan.num_chunks, work.num_sums)
        for i in plan.irregular:
            row = _ContiguousCopies(lists, i)
            totals[:, i : i + 1] = run_each(work.for_tensor(i), row.lists)
            row.copy_back(work.written)
        return totals


def make_current(device: torch.device) -> AbstractContextManager:
    """Make the device current; costs nothing where it is already."""
    if device.type == "cpu" or device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(device)


def to_device(scalar: Tensor, device: torch.device) -> Tensor:
    """The scalar, on the device."""
    return scalar if scalar.device == device else devices.to_device(scalar, device)


def _sweep(work: Sweep, lists: Sequence[Tensors]) -> tuple[Plan, Tensor]:
    device = lists[0][0].device
    stream = current_stream(device)
    entries = [entry_of(tensors) for tensors in lists]
    plan = plan_of(entries, device, work.row_major)
    partials = torch.empty(work.num_sums * plan.num_chunks, dtype=torch.float64, device=device)
    scalars = tuple([to_device(s, device) for s in work.scalars])
    # Floats: Triton would compile the value of an int in, and the key does not tell its values apart.
    floats = tuple(map(float, work.floats))
    given = (tuple([c.table.on(stream) for c in entries]), scalars, work.per_tensor, floats, partials)
    types = tuple([v.dtype for v in (*scalars, *work.per_tensor)])
    for group in plan.groups:
        dtypes = tuple([TRITON_DTYPES[d] for d in group.dtypes])
        constants = (work.block, dtypes, work.options, work.num_sums, CHUNK, BLOCK, TAIL)
        written = [lists[k] if group.tensors is None else [lists[k][i] for i in group.tensors] for k in work.written]
        launch(
            sweep,
            (group.num_chunks,),
            (
                plan.chunks.on(stream),
                plan.numels.on(stream),
                group.first,
                plan.num_chunks,
                *given,
                *constants,
            ),
            (work.block, group.dtypes, work.options, types),
            written,
        )
    return plan, partials


class _ContiguousCopies:
    """One tensor of every list as contiguous copies; two that share memory share a copy."""

    def __init__(self, lists: Sequence[Tensors], i: int) -> None:
        self._originals = [tensors[i] for tensors in lists]
        copies: dict[tuple, Tensor] = {}
        self.lists = []
        for t in self._originals:
            place = (t.data_ptr(), t.stride(), t.dtype)
            if place not in copies:
                copies[place] = t.contiguous()
            self.lists.append([copies[place]])

    @torch.no_grad()
    def copy_back(self, written: Sequence[int]) -> None:
        """The copies of the lists that were written, into their tensors."""
        for k in written:
            if self._originals[k] is not self.lists[k][0]:
                self._originals[k].copy_(self.lists[k][0])
