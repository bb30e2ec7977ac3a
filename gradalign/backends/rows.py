"""Lists of tensors as rows of numbers: where they are, their dtypes, sizes and strides, read anew at every call.

To hand a list to an op costs torch about half a microsecond a tensor. `gradalign._C` reads a tensor in half of that or less,
and the op takes the rows instead. What it does not read, it leaves to torch's lists: subclasses, tensors without memory, or
whose memory is not their value, everything under a mode or a tracer, and every list where the module is not there.

A list that is passed again and again can be a `Prepared`, of which less has to be asked. It is a tuple, which every op takes.
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Iterable, Sequence
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import Parameter

log = logging.getLogger("gradalign")


class Prepared(tuple[Tensor, ...]):
    """A list of tensors that remembers what it was when it was made.

    The tensors are read at every call as those of any list are: one that moved, was resized or changed its dtype is seen. Those
    that did not are not asked again whether they are views with the negative bit, which takes as long as all the rest.

    Attributes:
        rows: what `read` gave of it; None where torch has to see the list.
    """

    rows: bytearray | None

    def __new__(cls, tensors: Iterable[Tensor]) -> Prepared:
        """Of these tensors."""
        prepared = super().__new__(cls, tensors)
        prepared.rows = None
        prepared.rows = read((prepared,))
        return prepared


def kept(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The tensors, where nobody can take one away while a kernel runs."""
    return tensors if isinstance(tensors, tuple) else tuple(tensors)


def read(lists: tuple[tuple[Tensor, ...], ...]) -> bytearray | None:
    """The rows of some lists on one device, for as long as their tensors are kept; None where torch has to see the lists.

    For each list, as int64: the number of its tensors, then a row for each as in `csrc/tensor/row.h`.
    """
    if torch._C._len_torch_dispatch_stack() or torch._C._is_tracing():
        return None
    module = reader()
    return None if module is None else module.rows(lists, tuple([getattr(ts, "rows", None) for ts in lists]))


@functools.cache
def reader() -> ModuleType | None:
    """The module that reads, or None with the reason in the log."""
    try:
        module = importlib.import_module("gradalign._C")
    except ImportError as error:
        log.info("lists of tensors are passed through torch, which costs time: %s", error)
        return None
    return module if module.use_tensors(Tensor, Parameter) else None
