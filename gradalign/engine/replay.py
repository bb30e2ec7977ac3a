"""The state that a displaced pass shares with its base pass: random numbers and buffers."""

from __future__ import annotations

import ctypes
import random
import sys
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gradalign.engine.addresses import ParamMemory, span


class RandomState:
    """The global random number generators: torch's of the CPU and of the given devices, Python's and NumPy's."""

    def __init__(self, devices: Iterable[torch.device]) -> None:
        self._devices = [d for d in devices if d.type not in ("cpu", "meta")]
        self._cpu = torch.get_rng_state()
        self._on_device = [torch.get_device_module(d).get_rng_state(d) for d in self._devices]
        self._python: tuple[Any, ...] | None = random.getstate()
        self._numpy: tuple[Any, ...] | None = numpy_random().get_state() if numpy_random() else None

    def leave_unused(self, starts: Sequence[RandomState]) -> None:
        """Put back neither Python's nor NumPy's generator where no base pass used it: other threads may draw from it meanwhile.

        Args:
            starts: what the base passes of the displaced ones began with; this is what they ended with.
        """
        if all(start._python == self._python for start in starts):
            for state in (self, *starts):
                state._python = None
        if all(_same_numpy(start._numpy, self._numpy) for start in starts):
            for state in (self, *starts):
                state._numpy = None

    def put_back(self) -> None:
        """Set every generator to the snapshot."""
        torch.set_rng_state(self._cpu)
        for device, state in zip(self._devices, self._on_device, strict=True):
            torch.get_device_module(device).set_rng_state(state, device)
        if self._python is not None:
            random.setstate(self._python)
        if self._numpy is not None:
            numpy_random().set_state(self._numpy)


class RandomWatch:
    """Sees torch's CPU generator move between the base passes of a step: another thread draws from it."""

    def __init__(self) -> None:
        self._after: bytes | None = None

    def note(self) -> None:
        """A base pass has ended; the next one begins with the same state."""
        self._after = _generator_state()

    def check(self) -> None:
        """A base pass begins."""
        if self._after is not None and self._after != _generator_state():
            warnings.warn(
                "expected random numbers that only this step draws; got torch's generator moved between its passes: another "
                "thread draws from it, so that displaced passes see other dropout masks than their base passes; give threads "
                "generators of their own, or train in one thread",
                UserWarning,
                stacklevel=2,
            )
            self._after = None


def _generator_state() -> bytes:
    """Of torch's CPU generator; compared as bytes, since `torch.equal` would look like a wait for a device."""
    state = torch.get_rng_state()
    return ctypes.string_at(state.data_ptr(), state.numel())


class Buffers:
    """The buffers of some models.

    Args:
        models: the models.
        memory: of the parameters; a buffer that overlaps it is displaced and restored with its parameter.
    """

    def __init__(self, models: Iterable[nn.Module], memory: ParamMemory) -> None:
        self._modules = list({id(m): m for model in models for m in model.modules()}.values())
        self._memory = memory

    def state(self) -> BufferState:
        """A snapshot of all of them."""
        return BufferState(self._modules, self._memory)


class BufferState:
    """A snapshot of all buffers of some modules, by module and name: modules reassign buffers as well as write into them.

    Args:
        modules: the modules.
        memory: of the parameters; a buffer that overlaps it is displaced and restored with its parameter.
    """

    def __init__(self, modules: Iterable[nn.Module], memory: ParamMemory) -> None:
        self._buffers = [(m, dict(m._buffers.items())) for m in modules]
        tensors = {id(b): b for _, named in self._buffers for b in named.values() if b is not None}
        self._tensors = [b for b in tensors.values() if not memory.covers(b)]
        self._places: list[Tensor] = [t.detach() for t in self._tensors]
        self._owned = [_owned(t) for t in self._places]
        self._values = [t.clone() for t in self._owned]

    @torch.no_grad()
    def put_back(self) -> None:
        """Make every buffer the same tensor, of the same size and values, as in the snapshot; drop those added since."""
        for module, named in self._buffers:
            now = module._buffers
            # The buffers of a ScriptModule are no dict and cannot be exchanged.
            if isinstance(now, dict) and (now.keys() != named.keys() or any(now[k] is not b for k, b in named.items())):
                now.clear()
                now.update(named)
        for t, place in zip(self._tensors, self._places, strict=True):
            if t.layout is torch.strided and _geometry(t) != _geometry(place):
                t.set_(place)  # type: ignore[call-overload]
        if self._tensors:
            torch._foreach_copy_(self._owned, self._values)


class ReplayState:
    """A snapshot of the random number generators and the buffers, from which a pass can be replayed."""

    def __init__(self, devices: list[torch.device], buffers: Buffers) -> None:
        self._random = RandomState(devices)
        self._buffers = buffers.state()

    def leave_unused(self, starts: Sequence[ReplayState]) -> None:
        """See `RandomState.leave_unused`; torch's generators are put back in any case."""
        self._random.leave_unused([start._random for start in starts])

    def put_back(self) -> None:
        """Set generators and buffers to the snapshot."""
        self._random.put_back()
        self._buffers.put_back()


def _same_numpy(a: tuple[Any, ...] | None, b: tuple[Any, ...] | None) -> bool:
    if not (isinstance(a, tuple) and isinstance(b, tuple)):  # no NumPy, or another generator than its default
        return a is b
    return a[0] == b[0] and a[2:] == b[2:] and a[1].tobytes() == b[1].tobytes()


def _geometry(t: Tensor) -> tuple[int, torch.Size, tuple[int, ...]]:
    return t.data_ptr(), t.shape, t.stride()


def _owned(t: Tensor) -> Tensor:
    """A view that has every element of a tensor's memory once, also where the tensor is expanded or overlaps itself."""
    if t.layout is not torch.strided or t.is_contiguous():
        return t
    once = t[tuple(slice(None) if stride else slice(1) for stride in t.stride())]
    reach = 0
    for stride, size in sorted(zip(once.stride(), once.shape, strict=True)):
        if size > 1 and stride <= reach:
            first, end = span(t)
            return t.as_strided(((end - first) // t.element_size(),), (1,))
        reach += stride * (size - 1)
    return once


def numpy_random() -> Any:
    """NumPy's module of random numbers, where NumPy is imported.

    The first call imports the module, which would swallow a KeyboardInterrupt: a method makes it before its first step.
    """
    numpy = sys.modules.get("numpy")
    return numpy.random if numpy is not None else None
