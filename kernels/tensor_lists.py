"""Addresses, dtypes and layouts of lists of tensors: read at every call, turned into tables once.

Nothing is taken from an earlier call before it is seen to be the same: a list is recognised by the addresses, dtypes, sizes and
strides that its tensors have now. So new tensors at known addresses (gradients, from one pass to the next) copy nothing to the
device, new addresses cost one small asynchronous copy, and a tensor that moved or changed its shape is found.

`gradalign._C` reads 391 tensors in tens of microseconds. Where it is not there, Python does, in about a millisecond.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gradalign.backends import rows
from gradalign.backends.signatures import Tensors
from gradalign.kernels.tables import Recent, Table, integers

# Of a tensor: None (row-major), the strides of a permuted one, or STRIDED: its elements do not fill its memory.
Layout = tuple[int, ...] | str | None
STRIDED = "strided"

_formats: Recent[Format] = Recent(256)
_tables: Recent[Table] = Recent(256)


class Format:
    """Dtype, layout and number of elements of every tensor of a list; one object for all lists that agree in them."""

    def __init__(self, tensors: Tensors) -> None:
        self.dtypes = tuple(t.dtype for t in tensors)
        self.layouts = tuple(map(_layout, tensors))
        self.sizes = tuple(map(Tensor.numel, tensors))


class Entry(NamedTuple):
    """What kernels are told of one list: the table of its addresses, and its format."""

    table: Table
    format: Format


class Listed(tuple[Tensor, ...]):
    """A list of tensors as an op was called with it, and its entry."""

    entry: Entry


def listed(lists: Sequence[Tensors], check: Callable[[bytearray], None] | None = None) -> list[Listed] | None:
    """Lists with at least one tensor each, read at once; None where `gradalign._C` does not read them.

    Args:
        lists: the lists.
        check: called with their rows.
    """
    kept = tuple(map(rows.kept, lists))
    module, read = rows.reader(), rows.read(kept)
    if module is None or read is None:
        return None
    if check is not None:
        check(read)
    return [_listed(tensors, *key) for tensors, key in zip(kept, module.keys(read), strict=True)]


def listed_by_python(lists: Sequence[Tensors]) -> list[Listed]:
    """The same for tensors that are known to hold their values, whatever reads them."""
    return [_listed(tensors, _addresses(tensors), tuple(map(_shape_of, tensors))) for tensors in lists]


def entry_of(tensors: Tensors) -> Entry:
    """The entry of a list with at least one tensor, which is known to hold its values."""
    if isinstance(tensors, Listed):
        return tensors.entry
    (found,) = listed((tensors,)) or listed_by_python((tensors,))
    return found.entry


def _listed(tensors: Tensors, addresses: bytes, shapes: object) -> Listed:
    device = tensors[0].device
    table = _tables.get((device, addresses), lambda: Table(integers(addresses), device))
    found = Listed(tensors)
    found.entry = Entry(table, _formats.get(shapes, lambda: Format(tensors)))
    return found


def _addresses(tensors: Tensors) -> bytes:
    return array("q", map(Tensor.data_ptr, tensors)).tobytes()


def _shape_of(t: Tensor) -> tuple[torch.dtype, torch.Size, tuple[int, ...]]:
    return t.dtype, t.shape, t.stride()


def _layout(t: Tensor) -> Layout:
    if t.is_contiguous():
        return None
    dims = [(stride, size) for stride, size in zip(t.stride(), t.shape, strict=True) if size > 1]
    expected = 1
    for stride, size in sorted(dims):
        if stride != expected:
            return STRIDED
        expected *= size
    return tuple(stride for stride, _ in dims)
