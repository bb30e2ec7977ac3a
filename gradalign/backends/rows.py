"""Lists of tensors as rows of numbers: where they are, their dtypes, sizes and strides, read anew at every call.

To hand a list to an op costs torch about half a microsecond a tensor. `gradalign._C` reads a tensor in half of that or less,
and the op takes the rows instead. What it does not read, it leaves to torch's lists: subclasses, tensors without memory, or
whose memory is not their value, everything under a mode or a tracer, and every list where the module is not there.
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import Parameter

log = logging.getLogger("gradalign")


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
    return None if module is None else module.rows(lists)


@functools.cache
def reader() -> ModuleType | None:
    """The module that reads, or None with the reason in the log."""
    try:
        module = importlib.import_module("gradalign._C")
    except ImportError as error:
        log.info("lists of tensors are passed through torch, which costs time: %s", error)
        return None
    return module if module.use_tensors(Tensor, Parameter) else None
