"""Where the tensors of a list are, and what they are.

Asking 391 tensors for their addresses takes Python 20 to 30 microseconds, for dtype and layout twice that, so that a list
is recognised by the identities of its tensors and their addresses; weak references see to it that an identity means what
it did. New tensors at known addresses (gradients, from one pass to the next) are asked what they are, but nothing is
copied to the device; new addresses cost one small asynchronous copy. What is not noticed is a known tensor that changes
shape or strides in place without moving (`t_()`, `resize_()` to less).
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

from gradalign.kernels.tables import Interned, Recent, Table, integers

Tensors = Sequence[Tensor]
# Of a tensor: None (row-major), the strides of a permuted one, or STRIDED: its elements do not fill its memory.
Layout = tuple[int, ...] | str | None
STRIDED = "strided"

_dtype_of = operator.attrgetter("dtype")
_kinds = Interned()
_sizes = Interned()
_tables: Recent[Table] = Recent(256)
_columns: dict[tuple[int, int, int], Column] = {}


class Column:
    """One list of tensors."""

    def __init__(self, tensors: Tensors, addresses: list[int], kinds: int) -> None:
        device = tensors[0].device
        self.addresses = addresses
        self.ids = list(map(id, tensors))
        self.kinds = kinds
        self.table = _tables.get((device, *addresses), lambda: Table(integers(addresses), device))
        self.trusted = False
        self.watch: list[weakref.ref] = []
        self._sizes: int | None = None

    def dtypes(self) -> tuple[torch.dtype, ...]:
        """One for all tensors where they agree, else one for each."""
        return _kinds[self.kinds][0]

    def sizes(self, tensors: Tensors) -> int:
        """What stands for the numels; `tensors` are the column's."""
        if self._sizes is None:
            self._sizes = _sizes.number(tuple(map(Tensor.numel, tensors)))
        return self._sizes


def column(tensors: Tensors) -> Column:
    """The column of a list with at least one tensor."""
    addresses = list(map(Tensor.data_ptr, tensors))
    key = (id(tensors[0]), id(tensors[-1]), len(tensors))
    known = _columns.get(key)
    if known is not None and known.addresses == addresses and known.ids == list(map(id, tensors)):
        if known.trusted:
            return known
        if known.kinds == _kinds_of(tensors):  # an identity may have passed to another tensor so far
            known.watch = _watch(key, tensors)
            known.trusted = True
            return known
    fresh = Column(tensors, addresses, _kinds_of(tensors))
    fresh.watch = _watch(key, tensors[:1])  # all of them are watched when the list comes a second time
    _columns[key] = fresh
    return fresh


def kinds_of(number: int, num_tensors: int) -> list[tuple[torch.dtype, Layout]]:
    """(dtype, layout) of every tensor, from `Column.kinds`."""
    dtypes, layouts = _kinds[number]
    return list(
        zip(
            dtypes * (num_tensors if len(dtypes) == 1 else 1),
            layouts * (num_tensors if len(layouts) == 1 else 1),
            strict=True,
        )
    )


def sizes_of(number: int) -> tuple[int, ...]:
    """The numels, from `Column.sizes`."""
    return _sizes[number]


def _watch(key: tuple[int, int, int], tensors: Tensors) -> list[weakref.ref]:
    def forget(_: weakref.ref) -> None:
        _columns.pop(key, None)

    return [weakref.ref(t, forget) for t in tensors]


def _kinds_of(tensors: Tensors) -> int:
    dtypes = tuple(set(map(_dtype_of, tensors)))
    if len(dtypes) > 1:
        dtypes = tuple(map(_dtype_of, tensors))
    contiguous = all(map(Tensor.is_contiguous, tensors))
    return _kinds.number((dtypes, (None,) if contiguous else tuple(map(_layout, tensors))))


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
