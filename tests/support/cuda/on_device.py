"""A backend that runs the ops on a GPU for callers whose tensors live on the CPU: so one test serves both."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from gradalign.backends.signatures import SCALAR_OPS, VECTOR_OPS, StepScalars, StepTensors

AROUND = 64  # elements before and after each tensor, which no op may write


class OnDevice:
    """The ops of a backend; tensors go to the device in their own layout, and what was written comes back."""

    def __init__(self, backend: ModuleType, device: str, name: str = "cuda") -> None:
        self.NAME = name
        self._backend = backend
        self._device = torch.device(device)

    def __getattr__(self, op: str) -> Callable[..., Any]:
        if op not in {"step_", *VECTOR_OPS, *SCALAR_OPS}:
            raise AttributeError(op)

        def run(*args: Any, **kwargs: Any) -> Any:
            there: dict[tuple, tuple[Tensor, Tensor, Tensor]] = {}  # the same tensor twice stays the same tensor
            moved = {name: self._moved(value, there) for name, value in kwargs.items()}
            placed = [self._moved(value, there) for value in args]
            before = [base.clone() for _, _, base in there.values()]
            result = getattr(self._backend, op)(*placed, **moved)
            for (here, copy, base), base_before in zip(there.values(), before, strict=True):
                if 0 not in here.stride():  # an expanded tensor is only read
                    here.copy_(copy)
                    copy.copy_(base_before.as_strided(copy.shape, copy.stride(), copy.storage_offset()))
                assert torch.equal(base.view(torch.uint8), base_before.view(torch.uint8)), "written beside a tensor"
            return result.cpu() if isinstance(result, Tensor) else result

        return run

    def _moved(self, value: Any, there: dict[tuple, tuple[Tensor, Tensor, Tensor]]) -> Any:
        if isinstance(value, (StepTensors, StepScalars)):
            return type(value)(*(self._moved(v, there) for v in value))
        if isinstance(value, (list, tuple)):
            return [self._moved(v, there) for v in value]
        if not isinstance(value, Tensor):
            return value
        key = (value.data_ptr(), value.shape, value.stride(), value.dtype) if value.numel() else (id(value),)
        if key not in there:
            there[key] = (value, *like(value, self._device))
        return there[key][1]


def like(tensor: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """A copy on `device` with the same strides and the same distance from a 16-byte boundary, and the memory it is in."""
    if tensor.numel() == 0:
        empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
        return empty, torch.empty(0, dtype=tensor.dtype, device=device)
    extent = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    offset = AROUND + tensor.data_ptr() % 16 // tensor.element_size()
    base = torch.zeros(offset + extent + AROUND, dtype=tensor.dtype, device=device)
    copy = base.as_strided(tensor.shape, tensor.stride(), offset)
    flat = tensor.as_strided((extent,), (1,), tensor.storage_offset())
    base[offset : offset + extent] = flat.to(device)
    return copy, base
