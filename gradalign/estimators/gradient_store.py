"""Where the gradients of micro-batches or sources are until they are compared with the sum of all."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from gradalign.engine.devices import to_device
from gradalign.engine.space import ParamSpace, Vector

GradientStore = Literal["device", "host", "recompute"]


def stored(g: Vector, total: Vector, where: GradientStore) -> Vector:
    """The gradient to keep, before it is added to `total`.

    On the device, where it is the first to reach a parameter, it becomes the sum, and is copied.
    """
    if where == "host":
        return [None if t is None else _to_host(t) for t in g]
    return [t.clone() if t is not None and sum_ is None else t for t, sum_ in zip(g, total, strict=True)]


def fetched(g: Vector, space: ParamSpace, where: GradientStore) -> Vector:
    """A kept gradient, where its parameters are."""
    if where != "host":
        return g
    devices = [p.device for p in space.params]
    return [None if t is None else to_device(t, d) for t, d in zip(g, devices, strict=True)]


def _to_host(t: Tensor) -> Tensor:
    if t.device.type == "cpu":
        return t.clone()
    return torch.empty_like(t, device="cpu", pin_memory=True).copy_(t, non_blocking=True)
