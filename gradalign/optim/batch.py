"""What one call of a step op works on: the parameters of one group, device and combination of dtypes."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradalign.engine.devices import to_device


@dataclass(frozen=True)
class Batch:
    """Parameters that share settings, device and dtypes, with their gradients and state.

    Attributes:
        group: the settings.
        params: the parameters.
        grads: their gradients, in memory that holds their values.
        state: by name ("step", "exp_avg", ..., "master"), one tensor for each parameter; a name that is not used is absent.
        whole: the parameters as the user knows them; of those that are sharded, `params` and the rest are what this rank holds.
        given: the gradients that are cleared: `grads` itself, or what it has copies of.
    """

    group: Mapping[str, Any]
    params: list[Tensor]
    grads: list[Tensor]
    state: Mapping[str, list[Tensor]]
    whole: list[Tensor]
    given: list[Tensor]

    @property
    def device(self) -> torch.device:
        """Where all of it lives."""
        return self.params[0].device

    @property
    def dtypes(self) -> frozenset[torch.dtype]:
        """The storage dtypes of all that an op is given."""
        first = (tensors[0] for name, tensors in self.state.items() if name != "step")
        return frozenset((self.params[0].dtype, self.grads[0].dtype, *(t.dtype for t in first)))

    def states(self, name: str) -> list[Tensor]:
        """The state tensors of that name, or an empty list."""
        return self.state.get(name, [])


def group_by(columns: list[list[Tensor]], *kinds: Iterable[Hashable]) -> list[list[list[Tensor]]]:
    """Split the parameters into groups that agree in every key.

    Args:
        columns: lists with one tensor per parameter. Lists and not a tuple per parameter: a thousand new containers in every
            step would make Python's garbage collector walk its whole heap.
        kinds: keys, one per parameter each.

    Returns:
        For each group, the columns with its parameters only.
    """
    if not columns[0]:
        return []
    listed = [list(kind) for kind in kinds]
    if all(len(set(kind)) == 1 for kind in listed):
        return [columns]
    rows: dict[tuple, list[int]] = {}
    for i, key in enumerate(zip(*listed, strict=True)):
        rows.setdefault(key, []).append(i)
    return [[[column[i] for i in members] for column in columns] for members in rows.values()]


class DeviceScalars:
    """Numbers as 0-dim tensors on a device, made without a host synchronisation, each once a step."""

    def __init__(self) -> None:
        self._made: dict[tuple[float, torch.dtype, torch.device], Tensor] = {}

    def __call__(self, value: float | Tensor, device: torch.device, dtype: torch.dtype = torch.float64) -> Tensor:
        """`value` on `device`; a tensor keeps its dtype, a number gets `dtype`.

        Raises:
            ValueError: a tensor that a CUDA graph, which is being captured, could not read.
        """
        if isinstance(value, Tensor):
            if value.device.type == "cpu" and device.type == "cuda":
                _check_capture(value, device)
            return to_device(value.detach().reshape(()), device)
        key = (value, dtype, device)
        if key not in self._made:
            self._made[key] = torch.full((), value, dtype=dtype, device=device)
        return self._made[key]


def _check_capture(value: Tensor, device: torch.device) -> None:
    """No copy from memory that is not pinned is captured; torch says so only when the capture is half done."""
    if torch.cuda.is_current_stream_capturing() and not value.is_pinned():
        raise ValueError(
            f"expected a setting that is a tensor (learning rate, weight decay) on {device} while a CUDA graph is captured; "
            f"got one on {value.device}; make it with torch.tensor(..., device={str(device)!r})"
        )
