"""How a kernel gets onto the stream: compiled once, then bound and enqueued with little Python in between.

Python runs signal handlers between two bytecodes, never inside a C loop. The driver's launch and the bumps of the version
counters are one such loop, so that an interrupt finds either both or neither.
"""

from __future__ import annotations

import copy
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from gradalign.kernels.rounding import INTERPRETED

THREADS = 128  # a program: with blocks of 1024 elements, 8 elements a thread on every GPU

_compiled: dict[tuple, Compiled] = {}


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
    compiled = _compiled.get(key)
    if compiled is None:
        compiled = _compiled[key] = Compiled(kernel, grid, args)
    compiled.enqueue(grid, args, written)


def compile_options(target: GPUTarget) -> dict[str, Any]:
    """How every kernel is compiled."""
    # At most 64 registers a thread. Left to itself, LLVM takes more to have all loads in flight at once, and ptxas takes
    # so few that it spills.
    registers = {"waves_per_eu": 8} if target.backend == "hip" else {"maxnreg": 64}
    # Without fused multiply-adds the results are those of the reference, bit for bit.
    return {"num_warps": THREADS // target.warp_size, "enable_fp_fusion": False, **registers}


class Compiled:
    """A kernel for one device and one choice of types and constants."""

    def __init__(self, kernel: Any, grid: tuple[int, ...], args: Sequence[Any]) -> None:
        options = compile_options(driver.active.get_current_target())
        self._kernel = kernel.warmup(*args, grid=grid, **options)
        self._launcher = self._kernel.run
        self._bound = threading.local()
        self._binder = copy.copy(self._launcher)
        self._binder.launch = lambda *bound: setattr(self._bound, "arguments", bound)

    def enqueue(self, grid: tuple[int, ...], args: Sequence[Any], written: Iterable[Sequence[Tensor]]) -> None:
        """Launch, and bump the version counters, in one C loop."""
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
        bound, self._bound.arguments = self._bound.arguments, None
        deque(
            chain(
                map(self._launcher.launch, *((argument,) for argument in bound)),
                map(torch._C._increment_version, written),
            ),
            maxlen=0,
        )
