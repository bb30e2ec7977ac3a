"""Integers that kernels read: made on the host, copied to the device once.

A copy belongs to the stream that it was made on, so that nothing has to be synchronised. While a CUDA graph is captured
copies of any stream will do (a capture starts from a device at rest); one that has to be made then is a node of the graph,
never seen by later eager calls, and all that a graph uses is kept for its replays.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from triton.runtime import driver

Value = TypeVar("Value")

RESERVED = 1 << 17  # integers: 1 MiB, a dozen lists of 10,000 tensors

_kept_for_graphs: dict[int, Any] = {}  # by the identity of the copy on the device, which lives as long as its entry


def current_stream(device: torch.device) -> int | None:
    """The stream that kernels go to; None while it is being captured."""
    if device.type == "cpu":
        return 0
    if torch.cuda.is_current_stream_capturing():
        return None
    return driver.active.get_current_stream(device.index)


class Reserve:
    """Pinned memory for what has to be staged during a capture: some versions of torch cannot pin any then."""

    def __init__(self) -> None:
        self._left = torch.empty(0, dtype=torch.int64, device="cpu")

    def fill(self) -> None:
        """Have at least half of it; not during a capture."""
        if self._left.numel() < RESERVED // 2:
            self._left = _pinned(RESERVED)

    def take(self, values: Tensor) -> Tensor:
        """A pinned copy of the values, which nobody else will be given."""
        if values.numel() > self._left.numel():
            return values.pin_memory()
        part, self._left = self._left[: values.numel()], self._left[values.numel() :]
        return part.view_as(values).copy_(values)


_reserve = Reserve()


def _pinned(num: int) -> Tensor:
    return torch.empty(num, dtype=torch.int64, device="cpu", pin_memory=True)


class Table:
    """One vector or matrix of int64, with a copy for every stream that asked."""

    def __init__(self, values: Tensor, device: torch.device) -> None:
        self._values = values
        self._device = device
        self._copies: dict[int, Tensor] = {}

    def on(self, stream: int | None) -> Tensor:
        """The copy that work on the stream may read."""
        if stream is None:
            copy = next(iter(self._copies.values()), None)
            staged, copy = self._copy(capturing=True) if copy is None else (None, copy)
            _kept_for_graphs.setdefault(id(copy), (staged, copy))
            return copy
        copy = self._copies.get(stream)
        if copy is None:
            _, copy = self._copy()
            self._copies[stream] = copy
        return copy

    def _copy(self, capturing: bool = False) -> tuple[Tensor, Tensor]:
        if self._device.type == "cpu":
            return self._values, self._values
        if capturing:
            staged = _reserve.take(self._values)
        else:
            _reserve.fill()
            staged = self._values.pin_memory()
        return staged, staged.to(self._device, non_blocking=True)


def integers(values: Sequence[int] | bytes) -> Tensor:
    """Int64 tensor on the CPU, from numbers or their bytes; several times faster than `torch.tensor`."""
    return torch.frombuffer(array("q", values), dtype=torch.int64)


class Recent(Generic[Value]):
    """The values of the keys that were asked for last."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._values: OrderedDict[object, Value] = OrderedDict()

    def get(self, key: object, make: Callable[[], Value]) -> Value:
        """The value of the key, made if it is not there."""
        value = self._values.get(key)
        if value is not None:
            with suppress(KeyError):  # another thread made it leave
                self._values.move_to_end(key)
            return value
        value = self._values[key] = make()
        if len(self._values) > self._capacity:
            self._values.popitem(last=False)
        return value
