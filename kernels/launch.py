"""How a kernel gets onto the stream: compiled once, then bound and enqueued with little Python in between.

Python runs signal handlers between two bytecodes, never inside a C loop. The driver's launch and the bumps of the version
counters are one such loop, so that an interrupt finds either both or neither. This takes what Triton does not document; where
a version of it works in another way, Triton launches.
"""

from __future__ import annotations

import copy
import functools
import logging
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from gradalign.kernels.rounding import INTERPRETED

try:
    from triton import knobs
except ImportError:  # of another version; then Triton launches
    knobs = None

THREADS = 128  # a program: with blocks of 1024 elements, 8 elements a thread on every GPU

_compiled: dict[tuple, Compiled | Ordinary] = {}

log = logging.getLogger("gradalign")


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    args: Sequence[Any],
    key: tuple = (),
    written: Iterable[Sequence[Tensor]] = (),
) -> None:
    """Enqueue a kernel on the current stream and count the writes.

    Args:
        kernel: jitted, and specialised on the values of none of its arguments.
        grid: number of programs.
        args: the kernel's.
        key: what of the arguments is compiled in: types and constants.
        written: lists of tensors that the kernel writes; their version counters are bumped.
    """
    if INTERPRETED.value:
        kernel[grid](*args)
        deque(map(torch._C._increment_version, written), maxlen=0)
        return
    key = (kernel, driver.active.get_current_device(), *key)
    try:
        compiled = _compiled.get(key)
        if compiled is None:
            compiled = _compiled[key] = Compiled(kernel, grid, args)
        launched = compiled.prepared(grid, args)
    except (AttributeError, TypeError) as error:  # nothing is launched yet
        _tell(f"{type(error).__name__}: {error}")
        compiled = _compiled[key] = Ordinary(kernel)
        launched = compiled.prepared(grid, args)
    deque(chain(launched, map(torch._C._increment_version, written)), maxlen=0)


@functools.cache
def _tell(reason: str) -> None:
    """Once."""
    log.info(
        "Triton's kernels are launched by Triton, which takes the host longer: its launcher is another one (%s)", reason
    )


def compile_options(target: GPUTarget) -> dict[str, Any]:
    """How every kernel is compiled."""
    # At most 64 registers a thread. Left to itself, LLVM takes more to have all loads in flight at once, and ptxas takes
    # so few that it spills.
    registers = {"waves_per_eu": 8} if target.backend == "hip" else {"maxnreg": 64}
    # Without fused multiply-adds the results are those of the reference, bit for bit.
    return {"num_warps": THREADS // target.warp_size, "enable_fp_fusion": False, **registers}


class Compiled:
    """A kernel for one device and one choice of types and constants.

    Raises:
        AttributeError: a Triton whose launcher works in another way.
    """

    def __init__(self, kernel: Any, grid: tuple[int, ...], args: Sequence[Any]) -> None:
        options = compile_options(driver.active.get_current_target())
        self._kernel = kernel.warmup(*args, grid=grid, **options)
        self._launcher = self._kernel.run
        # What is called below must not launch by itself: it must be Python that calls `launch`.
        if "launch" not in type(self._launcher).__call__.__code__.co_names:
            raise AttributeError(f"{type(self._launcher).__name__} does not call its launch")
        self._launch = self._launcher.launch
        self._bound = threading.local()
        self._binder = copy.copy(self._launcher)
        self._binder.launch = lambda *bound: setattr(self._bound, "arguments", bound)

    def prepared(self, grid: tuple[int, ...], args: Sequence[Any]) -> Iterator[Any]:
        """An iterator whose end is the launch, in C; nothing is launched before."""
        kernel, runtime = self._kernel, knobs.runtime
        stream = driver.active.get_current_stream(driver.active.get_current_device())
        size = (*grid, 1, 1)[:3]
        metadata = kernel.launch_metadata(size, stream, *args)
        # A hook is called between the launch and the bumps, in Python: one without anything to call is left out.
        hooks = [
            h if getattr(h, "calls", True) else None for h in (runtime.launch_enter_hook, runtime.launch_exit_hook)
        ]
        # What the launcher would pass to the driver, whatever the version of Triton.
        self._binder(*size, stream, kernel.function, kernel.packed_metadata, metadata, *hooks, *args)
        bound, self._bound.arguments = getattr(self._bound, "arguments", None), None
        if bound is None:  # to launch now could be to launch twice
            raise RuntimeError(f"expected {type(self._launcher).__name__} of Triton to call its launch; it did not")
        return map(self._launch, *((argument,) for argument in bound))


class Ordinary:
    """A kernel that Triton launches as for anybody: slower, and an interrupt may come between the launch and the bumps."""

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel
        self._options = compile_options(driver.active.get_current_target())

    def prepared(self, grid: tuple[int, ...], args: Sequence[Any]) -> Iterator[Any]:
        """As that of `Compiled`."""
        return (self._kernel[grid](*args, **self._options) for _ in (None,))
