"""The state that a displaced pass shares with its base pass: random numbers and buffers."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class RandomState:
    """The global random number generators: torch's of the CPU and of the given devices, Python's and NumPy's."""

    def __init__(self, devices: Iterable[torch.device]) -> None:
        self._devices = [d for d in devices if d.type not in ("cpu", "meta")]
        self._cpu = torch.get_rng_state()
        self._on_device = [torch.get_device_module(d).get_rng_state(d) for d in self._devices]
        self._python = random.getstate()
        self._numpy = _numpy_random().get_state() if _numpy_random() else None

    def put_back(self) -> None:
        """Every generator as it was when this was made."""
        torch.set_rng_state(self._cpu)
        for device, state in zip(self._devices, self._on_device, strict=True):
            torch.get_device_module(device).set_rng_state(state, device)
        random.setstate(self._python)
        if self._numpy is not None:
            _numpy_random().set_state(self._numpy)


class BufferState:
    """All buffers of some modules, by module and name, since modules reassign them as well as write into them."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._buffers = [(m, dict(m._buffers)) for m in modules]
        tensors = {id(b): b for _, named in self._buffers for b in named.values() if b is not None}
        self._tensors: list[Tensor] = [t.detach() for t in tensors.values()]
        self._values = [t.clone() for t in self._tensors]

    def put_back(self) -> None:
        """Every buffer the same tensor with the same value as when this was made, none added, none gone."""
        for module, named in self._buffers:
            now = module._buffers
            if now.keys() != named.keys() or any(now[name] is not named[name] for name in named):
                now.clear()
                now.update(named)
        if self._tensors:
            torch._foreach_copy_(self._tensors, self._values)


def modules_with_buffers(models: Iterable[nn.Module]) -> list[nn.Module]:
    """Every module of the models once."""
    return list({id(m): m for model in models for m in model.modules()}.values())


def _numpy_random() -> Any:
    numpy = sys.modules.get("numpy")
    return numpy.random if numpy is not None else None
