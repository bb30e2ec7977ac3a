"""The state that a displaced pass shares with its base pass: random numbers and buffers."""

from __future__ import annotations

import ctypes
import operator
import random
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gradalign.engine.addresses import ParamMemory, repeats, span


class SlowState:
    """The state of a generator whose reading takes long; it is read again only where the generator's memory shows a change.

    Args:
        read: the whole state.
        memory: what every draw changes, or None where it cannot be known.
        may_keep: whether a draw from this state changes it.
    """

    def __init__(
        self, read: Callable[[], Any], memory: Callable[[], tuple[object, ...] | None], may_keep: Callable[[Any], bool]
    ) -> None:
        self._read = read
        self._memory = memory
        self._may_keep = may_keep
        self._held: tuple[tuple[object, ...] | None, Any] = None, None  # what was seen of the memory; the state

    def now(self) -> Any:
        """The state; the same object as long as nothing was drawn."""
        memory = self._memory()  # before the state: another thread may draw between the two
        seen, state = self._held
        if memory is None or memory != seen:
            state = self._read()
            # One write: an interrupt, or another thread, finds both of now or both of before.
            self._held = memory if self._may_keep(state) else None, state
        return state


def with_generators(devices: Iterable[torch.device]) -> list[torch.device]:
    """The devices that have random number generators of their own."""
    return [d for d in devices if d.type not in ("cpu", "meta")]


class RandomState:
    """The global random number generators: torch's of the CPU and of the given devices, Python's and NumPy's.

    Args:
        devices: those that `with_generators` lets through.
    """

    def __init__(self, devices: Sequence[torch.device]) -> None:
        self._devices = devices
        self._cpu = torch.get_rng_state()
        self._on_device = [torch.get_device_module(d).get_rng_state(d) for d in self._devices]
        self._python: tuple[Any, ...] | None = PYTHON.now()
        self._numpy: tuple[Any, ...] | None = NUMPY.now() if numpy_random() else None

    def leave_unused(self, starts: Sequence[RandomState]) -> None:
        """Put back neither Python's nor NumPy's generator where no base pass used it: other threads may draw from it meanwhile.

        Args:
            starts: what the base passes of the displaced ones began with; this is what they ended with.
        """
        if all(start._python is self._python or start._python == self._python for start in starts):
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
        # To set these two takes up to thirty times as long as to see that nothing was drawn.
        if self._python is not None and PYTHON.now() is not self._python:
            random.setstate(self._python)
        if self._numpy is not None and NUMPY.now() is not self._numpy:
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
        modules: the models, and all modules in them.
        memory: of the parameters; a buffer that overlaps it is displaced and restored with its parameter.
    """

    def __init__(self, modules: Iterable[nn.Module], memory: ParamMemory) -> None:
        self._modules = list(modules)
        self._memory = memory

    def state(self) -> BufferState:
        """A snapshot of all of them."""
        return BufferState(self._modules, self._memory)


NO_BUFFERS: dict[str, Tensor | None] = {}
_buffers = operator.attrgetter("_buffers")


class BufferState:
    """A snapshot of all buffers of some modules, by module and name: modules reassign buffers as well as write into them.

    Args:
        modules: the modules.
        memory: of the parameters; a buffer that overlaps it is displaced and restored with its parameter.
    """

    def __init__(self, modules: Sequence[nn.Module], memory: ParamMemory) -> None:
        self._modules = modules
        self._named: list[dict[str, Tensor | None]] = []  # the buffers of each module; none where no module has one
        if any(map(_buffers, modules)):
            self._named = [dict(m._buffers.items()) if m._buffers else NO_BUFFERS for m in modules]
        tensors = {id(b): b for named in self._named for b in named.values() if b is not None}
        self._tensors = [b for b in tensors.values() if not memory.covers(b)] if tensors else []
        self._places: list[Tensor] = [t.detach() for t in self._tensors]
        self._owned = [_owned(t) for t in self._places]
        self._values = [t.clone() for t in self._owned]

    def put_back(self) -> None:
        """Make every buffer the same tensor, of the same size and values, as in the snapshot; drop those added since."""
        if self._named or any(map(_buffers, self._modules)):
            self._put_back()

    @torch.no_grad()
    def _put_back(self) -> None:
        for module, named in zip(self._modules, self._named or [NO_BUFFERS] * len(self._modules), strict=True):
            now = module._buffers
            if not now and not named:
                continue
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

    def __init__(self, devices: Sequence[torch.device], buffers: Buffers) -> None:
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
    if a is b:
        return True
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
    if repeats(once):
        first, end = span(t)
        return t.as_strided(((end - first) // t.element_size(),), (1,))
    return once


def numpy_random() -> Any:
    """NumPy's module of random numbers, where NumPy is imported.

    The first call imports the module, which would swallow a KeyboardInterrupt: a method makes it before its first step.
    """
    numpy = sys.modules.get("numpy")
    return numpy.random if numpy is not None else None


PYTHON_STATE = 2500  # bytes: 624 numbers of 32 bits, and the position among them


def _python_memory() -> tuple[object, ...]:
    """The memory of Python's generator."""
    return _memory_of(random.random.__self__)  # type: ignore[attr-defined]


def _memory_of(generator: random.Random) -> tuple[object, ...]:
    """What follows the head of the object, as CPython lays it out, and the normal number that `gauss` keeps."""
    return ctypes.string_at(id(generator) + object.__basicsize__, PYTHON_STATE), generator.gauss_next  # type: ignore[attr-defined]


def _memory_shows_draws() -> bool:
    """Whether this interpreter lays a generator out as `_memory_of` takes it."""
    if sys.implementation.name != "cpython" or random.Random.__basicsize__ < object.__basicsize__ + PYTHON_STATE:
        return False
    probe = random.Random(0)
    before = _memory_of(probe)
    probe.random()
    moved = _memory_of(probe)
    probe.seed(0)
    return moved != before and _memory_of(probe) == before


def _numpy_memory() -> tuple[object, ...] | None:
    """The memory of NumPy's global generator, where it is the default one."""
    bit_generator: Any = getattr(numpy_random(), "get_bit_generator", lambda: None)()  # from NumPy 1.24 on
    if type(bit_generator).__name__ != "MT19937":
        return None
    return bit_generator, ctypes.string_at(bit_generator.ctypes.state_address, PYTHON_STATE)


def _keeps_no_normal(state: Any) -> bool:
    """Whether the next draw of a normal number changes NumPy's memory: none is kept from the last one."""
    return isinstance(state, tuple) and state[3] == 0


PYTHON = SlowState(random.getstate, _python_memory if _memory_shows_draws() else lambda: None, lambda _: True)
NUMPY = SlowState(lambda: numpy_random().get_state(), _numpy_memory, _keeps_no_normal)
